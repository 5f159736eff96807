package org.mote.engine

import java.io.File
import java.nio.file.Files
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** Takes and refuses what mote_runtime.manifest takes and refuses. */
class ManifestTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val golden = TestData.goldenJson("manifest.json").asMap()
    private val document = golden["document"].asList().single().asMap()

    /** A copy of [value] with what is at [path] replaced, or taken out. */
    private fun changed(value: Any?, path: List<Any?>, replacement: Any?): Any? {
        if (path.isEmpty()) return replacement
        val rest = path.drop(1)
        val isRemoved = rest.isEmpty() && replacement == MISSING
        return when (val key = path[0]) {
            is String -> LinkedHashMap(value.asMap()).also { copy ->
                if (isRemoved) copy.remove(key) else copy[key] = changed(copy[key], rest, replacement)
            }
            else -> ArrayList(value.asList()).also { copy ->
                val index = (key as Long).toInt()
                if (isRemoved) copy.removeAt(index) else copy[index] = changed(copy[index], rest, replacement)
            }
        }
    }

    @Test
    fun everyFieldIsCheckedAsInPython() {
        val values = golden["values"].asList()
        var count = 0
        for (result in golden["results"].asList().map { it.asMap() }) {
            val path = result["path"].asList()
            val taken = result["taken"] as String
            values.forEachIndexed { index, value ->
                val expected = taken[index] == '1'
                val refusal = try {
                    parseManifest(File("."), changed(document, path, value).asMap())
                    null
                } catch (error: MoteException) {
                    error.message!!
                }
                assertEquals("$path = ${shown(value)}: $refusal", expected, refusal == null)
                if (refusal != null) {
                    assertTrue(refusal, refusal.startsWith("mote.json: field '") && refusal.endsWith("."))
                    assertTrue(refusal, refusal.length < 300)
                }
                count++
            }
        }
        assertTrue("$count checks", count > 3000)
    }

    private fun write(content: String): File = temporary.newFolder().also { File(it, "mote.json").writeText(content) }

    @Test
    fun theFieldsAreRead() {
        val manifest = parseManifest(File("folder"), document)
        assertEquals(Runtime.ONNX_RUNTIME, manifest.runtime)
        assertEquals(listOf(1, 3), manifest.moe.layers.toList())
        assertEquals(setOf(2, 3), manifest.model.eosTokenIds)
        assertEquals("libmote_ort.so", manifest.pluginLibrary)
        assertEquals(File("folder/model.onnx"), manifest.path("model.onnx"))
        assertTrue("lists no file other" in sentenceOf { manifest.path("other") })
        assertNull(parseManifest(File("."), document - "plugin").pluginLibrary)
    }

    @Test
    fun whatIsNoDocumentIsRefused() {
        val contents = mapOf(
            "" to "not a readable JSON",
            "[]" to "expected a JSON object",
            "{\"format\": NaN}" to "not a readable JSON",
            "{\"format\": 1, \"format\": 2}" to "occurs twice",
            "{} {}" to "not a readable JSON",
            "{'format': 1}" to "not a readable JSON",
            "{\"format\": 0x10}" to "not a readable JSON",
            "{} // comment" to "not a readable JSON",
            "{\"a\": ".repeat(100_000) to "nested more than",
            "[".repeat(1_000_000) to "nested more than",
        )
        for ((content, expected) in contents) {
            val sentence = sentenceOf { Manifest.read(write(content)) }
            assertTrue("${content.take(20)}: $sentence", expected in sentence)
            assertTrue(sentence, sentence.endsWith(".") && '\n' !in sentence)
        }
        val folder = write("")
        File(folder, "mote.json").writeBytes(byteArrayOf('"'.code.toByte(), 0xff.toByte(), '"'.code.toByte()))
        assertTrue("not UTF-8" in sentenceOf { Manifest.read(folder) })
    }

    @Test
    fun whatIsNoFolderIsRefused() {
        val root = temporary.root
        assertTrue("does not exist" in sentenceOf { Manifest.read(File(root, "nowhere")) })
        assertTrue("is not a folder" in sentenceOf { Manifest.read(temporary.newFile()) })
        assertTrue("has no mote.json" in sentenceOf { Manifest.read(temporary.newFolder()) })
    }

    @Test
    fun filesAreComparedWithTheManifest() {
        val folder = temporary.newFolder()
        val sum = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae" // of "foo"
        val names = listOf("model.onnx", "embedding.onnx", "vision.onnx", "tokenizer.json")
        names.forEach { File(folder, it).writeText("foo") }
        val files = names.associateWith { mapOf("bytes" to 3L, "sha256" to sum) }
        val manifest = parseManifest(folder, document + ("files" to files))
        manifest.verify(hashes = true)
        val file = File(folder, "vision.onnx")
        file.writeText("fox")
        manifest.verify(hashes = false)
        assertTrue("vision.onnx in" in sentenceOf { manifest.verify(hashes = true) })
        file.writeText("fo")
        assertTrue("has 2 bytes" in sentenceOf { manifest.verify(hashes = false) })
        file.delete()
        assertTrue("vision.onnx is missing" in sentenceOf { manifest.verify(hashes = false) })
        file.mkdir()
        assertTrue("not a regular file" in sentenceOf { manifest.verify(hashes = false) })
        file.delete()
        Files.createSymbolicLink(file.toPath(), temporary.newFile().also { it.writeText("foo") }.toPath())
        assertTrue("leaves the folder" in sentenceOf { manifest.verify(hashes = false) })
        file.delete()
        Files.createSymbolicLink(file.toPath(), File("model.onnx").toPath())
        manifest.verify(hashes = true)
        file.delete()
        Files.createSymbolicLink(file.toPath(), File("vision.onnx").toPath()) // a loop
        assertTrue("vision.onnx" in sentenceOf { manifest.verify(hashes = false) })
    }

    private companion object {
        const val MISSING = "(missing)"
    }
}
