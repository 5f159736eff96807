package org.mote.engine

import java.io.File
import java.io.RandomAccessFile
import java.nio.file.Files
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** What is wrong with a folder or an installation is said in one sentence, before it does harm. */
class LoadFailuresTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private fun copy(runtime: Runtime): File =
        temporary.newFolder().also { File(TestData.model, runtime.subfolder).copyRecursively(it, overwrite = true) }

    private fun refusal(
        folder: File,
        runtime: Runtime,
        libraries: NativeLibraries = TestData.libraries,
        options: EngineOptions = EngineOptions(verify = false),
    ): String {
        val sentence = sentenceOf { MoteSession.open(folder, libraries, runtime, options).close() }
        assertTrue(sentence, sentence.endsWith(".") && '\n' !in sentence)
        return sentence
    }

    private fun check(expected: String, found: String) = assertTrue("$found lacks $expected", expected in found)

    private fun change(folder: File, change: (JSONObject) -> Unit) {
        val file = File(folder, MANIFEST_NAME)
        file.writeText(JSONObject(file.readText()).also(change).toString())
    }

    /** Replaces the content and says so in the manifest, as one who means harm would. */
    private fun forge(folder: File, name: String, content: (ByteArray) -> ByteArray) {
        val file = File(folder, name)
        file.writeBytes(content(file.readBytes()))
        change(folder) { it.getJSONObject("files").getJSONObject(name).put("bytes", file.length()) }
    }

    @Test
    fun whatHoldsNoExportIsRefused() {
        val empty = temporary.newFolder()
        check("has no mote.json", refusal(empty, Runtime.ONNX_RUNTIME))
        check("does not exist", refusal(File(empty, "x"), Runtime.EXECUTORCH))
        assertEquals(emptyList<Runtime>(), MoteSession.exportedRuntimes(empty))
        assertEquals(emptyList<Runtime>(), MoteSession.exportedRuntimes(File(empty, "x")))
        assertEquals(Runtime.entries, MoteSession.exportedRuntimes(TestData.model))
        for (runtime in Runtime.entries) {
            val folder = File(TestData.model, runtime.subfolder)
            assertEquals(listOf(runtime), MoteSession.exportedRuntimes(folder))
            val other = Runtime.entries.single { it != runtime }
            check("was exported for ${runtime.id}, not for ${other.id}", refusal(folder, other))
        }
        val half = temporary.newFolder()
        File(TestData.model, "onnx").copyRecursively(File(half, "onnx"))
        check("holds an export for onnxruntime, none for executorch", refusal(half, Runtime.EXECUTORCH))
    }

    @Test
    fun threadsOutOfRangeAreRefused() {
        for (threads in listOf(0, -1, 1025)) {
            val sentence = refusal(TestData.model, Runtime.ONNX_RUNTIME, options = EngineOptions(threads))
            check("threads is $threads", sentence)
        }
    }

    @Test
    fun aMissingLibraryIsNamed() {
        for (runtime in Runtime.entries) {
            assertTrue(TestData.libraries.has(runtime))
            val folder = temporary.newFolder()
            val libraries = NativeLibraries(folder)
            assertFalse(libraries.has(runtime))
            check("libmote_jni.so is not in $folder", refusal(TestData.model, runtime, libraries))
        }
    }

    /** Only what is missing: libraries that this process has loaded already may not be loaded from a second place. */
    private fun allBut(name: String): NativeLibraries = NativeLibraries(temporary.newFolder().also { folder ->
        for (file in TestData.libraries.folder.listFiles()!!) {
            if (file.name != name) Files.createSymbolicLink(File(folder, file.name).toPath(), file.toPath())
        }
    })

    @Test
    fun aMissingPluginIsNamed() {
        for (runtime in Runtime.entries) {
            val plugin = System.mapLibraryName(runtime.plugin)
            val libraries = allBut(plugin)
            assertFalse(libraries.has(runtime))
            check("$plugin is not in", refusal(TestData.model, runtime, libraries))
            File(libraries.folder, plugin).writeText("no library")
            check("plugin", refusal(TestData.model, runtime, libraries))
        }
    }

    @Test
    fun aFileThatWasChangedIsNamed() {
        for ((runtime, name) in listOf(Runtime.ONNX_RUNTIME to "model.onnx.data", Runtime.EXECUTORCH to "model.pte")) {
            val folder = copy(runtime)
            RandomAccessFile(File(folder, name), "rw").use { it.seek(it.length() / 2); it.write(it.read().inv()) }
            check("$name in $folder has SHA-256", refusal(folder, runtime, options = EngineOptions()))
            RandomAccessFile(File(folder, name), "rw").use { it.setLength(it.length() / 2) }
            val length = File(File(TestData.model, runtime.subfolder), name).length()
            check("expects $length bytes", refusal(folder, runtime))
            File(folder, name).delete()
            check("$name is missing", refusal(folder, runtime))
        }
    }

    @Test
    fun aModelThatWasForgedIsRefused() {
        for ((runtime, name) in listOf(
            Runtime.ONNX_RUNTIME to "model.onnx.data",
            Runtime.ONNX_RUNTIME to "model.onnx",
            Runtime.ONNX_RUNTIME to "embedding.onnx",
            Runtime.ONNX_RUNTIME to "vision.onnx.data",
            Runtime.EXECUTORCH to "model.pte",
        )) {
            val half: (ByteArray) -> ByteArray = { it.copyOf(it.size / 2) }
            val nothing: (ByteArray) -> ByteArray = { ByteArray(0) }
            val zeros: (ByteArray) -> ByteArray = { ByteArray(it.size) }
            for (content in listOf(half, nothing, zeros)) {
                if (name.endsWith(".data") && content === zeros) continue // zeros are weights like others
                val folder = copy(runtime)
                forge(folder, name, content)
                check(runtime.id, refusal(folder, runtime))
            }
        }
    }

    @Test
    fun graphsThatAreNotTheManifestsAreRefused() {
        val folder = copy(Runtime.ONNX_RUNTIME)
        val embedding = File(folder, "embedding.onnx").readBytes()
        forge(folder, "vision.onnx") { embedding }
        check("vision.onnx has other inputs than mote.json says", refusal(folder, Runtime.ONNX_RUNTIME))
        for (runtime in Runtime.entries) {
            for ((section, key, value) in listOf(
                Triple("model", "hidden_size", 64),
                Triple("model", "vocab_size", 600),
                Triple("image", "height", 32),
            )) {
                val changed = copy(runtime)
                change(changed) { it.getJSONObject(section).put(key, value) }
                val sentence = refusal(changed, runtime)
                assertTrue(sentence, "mote.json says" in sentence || "shape" in sentence)
            }
        }
        val fewer = copy(Runtime.ONNX_RUNTIME)
        change(fewer) {
            it.getJSONObject("model").put("num_hidden_layers", 3)
            it.getJSONObject("moe").put("layers", JSONArray(listOf(0)))
        }
        check("model.onnx has other inputs than mote.json says", refusal(fewer, Runtime.ONNX_RUNTIME))
    }

    @Test
    fun aCacheThatNoMemoryHoldsIsRefused() {
        for ((runtime, expected) in listOf(
            Runtime.ONNX_RUNTIME to "no memory for the KV cache",
            Runtime.EXECUTORCH to "get_max_context_len is not a number of at least 16777216",
        )) {
            val folder = copy(runtime)
            change(folder) { it.getJSONObject("model").put("context_length", 1 shl 24) }
            check(expected, refusal(folder, runtime))
        }
    }

    @Test
    fun aForeignTokenizerIsRefused() {
        for (runtime in Runtime.entries) {
            val folder = copy(runtime)
            forge(folder, "tokenizer.json") { TestData.golden("tokenizer.json") }
            check("tokenizer.json", refusal(folder, runtime))
            forge(folder, "tokenizer.json") { "{}".toByteArray() }
            check("'decoder' is missing", refusal(folder, runtime))
        }
    }

    /**
     * Without a plugin in the manifest none is loaded, and operators of ours are unknown: a folder cannot bring code of
     * its own.
     */
    @Test
    fun aModelThatSaysItNeedsNoPluginGetsNone() {
        val folder = copy(Runtime.ONNX_RUNTIME)
        change(folder) { it.put("plugin", JSONObject.NULL) }
        File(folder, "libmote_ort.so").let { if (!it.exists()) it.writeText("") }
        check("TernaryMoE", refusal(folder, Runtime.ONNX_RUNTIME))
    }
}
