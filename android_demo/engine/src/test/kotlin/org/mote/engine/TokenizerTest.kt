package org.mote.engine

import java.io.File
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** Equal to the library `tokenizers`, by way of mote_runtime.tokenizer, on what tests/android_golden.py wrote. */
class TokenizerTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val base = JSONObject(String(TestData.golden("tokenizer.json")))
    private val cases = TestData.goldenJson("tokenizer_cases.json").asMap()

    private fun write(document: JSONObject): File = temporary.newFile().also { it.writeText(document.toString()) }

    private fun copyOfBase() = JSONObject(base.toString())

    private fun read(document: JSONObject, vocabSize: Int = 1024) = readTokenizer(write(document), vocabSize)

    private fun variant(changes: Map<String, Any?>): JSONObject {
        val document = copyOfBase()
        for ((key, value) in changes) {
            if (key != "model") document.put(key, JSONObject.wrap(value))
        }
        changes["model"]?.asMap()?.forEach { (key, value) -> document.getJSONObject("model").put(key, value) }
        if (changes.isNotEmpty()) { // as before tokenizers 0.20
            val merges = document.getJSONObject("model").getJSONArray("merges")
            val pairs = (0 until merges.length()).map(merges::getJSONArray)
            val lines = pairs.map { "${it.getString(0)} ${it.getString(1)}" }
            document.getJSONObject("model").put("merges", JSONArray(lines))
        }
        return document
    }

    private fun eachVariant(check: (File, Map<String, Any?>) -> Unit) {
        assertEquals(setOf("qwen2", "llama3", "gpt2"), cases.keys)
        for (case in cases.values.map { it.asMap() }) check(write(variant(case["changes"].asMap())), case)
    }

    @Test
    fun textsBecomeTheSameIds() = eachVariant { file, golden ->
        val tokenizer = readTokenizer(file, 1024)
        for (case in golden["texts"].asList().map { it.asMap() }) {
            val text = case["text"] as String
            for (special in listOf(true, false)) {
                val ids = tokenizer.encode(text, tokenizer.cut(text, special))
                assertEquals("$text, special $special", case[if (special) "special" else "plain"].asInts(), ids)
            }
        }
    }

    @Test
    fun promptsBecomeTheSameIds() = eachVariant { file, golden ->
        val prompts = promptTokenizer(file)
        for (case in golden["prompts"].asList().map { it.asMap() }) {
            val prompt = prompts.encodePrompt(case["text"] as String, (case["images"] as Long).toInt())
            assertEquals(case["text"] as String, case["ids"].asInts(), prompt.ids.map { it.toInt() })
            assertEquals(prompt.ids.size, prompt.kinds.size)
            assertEquals(3 * (case["images"] as Long).toInt(), prompt.kinds.count { it == TokenKind.IMAGE })
        }
    }

    @Test
    fun idsBecomeTheSameTextAlsoInPieces() = eachVariant { file, golden ->
        val prompts = promptTokenizer(file)
        for (case in golden["answers"].asList().map { it.asMap() }) {
            val ids = case["ids"].asInts()
            assertEquals(case["text"], prompts.decode(ids))
            val decoder = prompts.stream()
            assertEquals(case["pieces"], ids.map(decoder::push) + decoder.flush())
        }
    }

    private fun id(token: String): Int {
        val added = base.getJSONArray("added_tokens")
        return (0 until added.length()).map(added::getJSONObject).single { it["content"] == token }.getInt("id")
    }

    private fun promptTokenizer(file: File): PromptTokenizer {
        val model = modelSpec(id("<|image_pad|>"), id("<|vision_start|>"), id("<|vision_end|>"))
        val prompt = PromptSpec(
            "<|im_start|>user\n",
            "<|vision_start|>{image_pads}<|vision_end|>",
            " ok\n<|im_end|>\n<|im_start|>assistant\n",
        )
        return PromptTokenizer(file, model, prompt)
    }

    private fun modelSpec(pad: Int?, start: Int?, end: Int?) =
        ModelSpec("golden", "", 1024, 1, 1, 1, 1, 1, 4096, emptySet(), null, null, pad, start, end, pad?.let { 3 })

    @Test
    fun kindsFollowTheTemplate() {
        val prompt = promptTokenizer(write(copyOfBase())).encodePrompt("Read the digit", 1)
        val prompts = promptTokenizer(write(copyOfBase()))
        val text = prompt.ids.indices.filter { prompt.kinds[it] == TokenKind.PROMPT }.map { prompt.ids[it].toInt() }
        assertEquals("Read the digit", prompts.decode(text))
    }

    /**
     * The runtime's own Unicode may be younger or older than that of `tokenizers`: only what one of both does not know
     * may differ.
     */
    @Test
    fun everyCharacterIsOfTheSameKind() {
        val kinds = arrayOfNulls<String>(Character.MAX_CODE_POINT + 1)
        val golden = TestData.goldenJson("characters.json").asMap()
        for ((first, last, kind) in golden["kinds"].asList().map { it.asList() }) {
            for (code in (first as Long).toInt()..(last as Long).toInt()) kinds[code] = kind as String
        }
        val known = Regex("[^\\p{Cn}\\p{Cs}]")
        val patterns = mapOf("L" to "\\p{L}", "N" to "\\p{N}", "S" to "[${PreTokenizer.SPACES}]")
            .mapValues { Regex(it.value) }
        var unknown = 0
        for (code in 0..Character.MAX_CODE_POINT) {
            if (code in 0xd800..0xdfff) continue
            val text = String(Character.toChars(code))
            val found = patterns.filterValues { it.matches(text) }.keys.joinToString("").ifEmpty { null }
            if (found == kinds[code]) continue
            assertTrue("U+%04X is $found, expected ${kinds[code]}".format(code), !known.matches(text))
            unknown++
        }
        assertTrue("$unknown characters differ", unknown < 20_000)
    }

    @Test
    fun everyCharacterIsComposedAlike() {
        val golden = TestData.goldenJson("characters.json").asMap()["nfc"].asMap()
        for (code in 0..Character.MAX_CODE_POINT) {
            if (code in 0xd800..0xdfff || Character.getType(code) == Character.UNASSIGNED.toInt()) continue
            val text = String(Character.toChars(code))
            val found = java.text.Normalizer.normalize(text, java.text.Normalizer.Form.NFC)
            assertEquals("U+%04X".format(code), golden[code.toString()] ?: text, found)
        }
    }

    @Test
    fun whatItCannotComputeIsRefused() {
        val bytes = JSONObject().put("type", "ByteLevel").put("add_prefix_space", true)
        fun refusal(change: (JSONObject) -> Unit) = sentenceOf { read(copyOfBase().also(change)) }
        fun model(change: (JSONObject) -> Unit) = refusal { change(it.getJSONObject("model")) }
        fun token(change: (JSONObject) -> Unit) = refusal { change(it.getJSONArray("added_tokens").getJSONObject(0)) }
        fun split(change: (JSONObject) -> Unit) =
            refusal { change(it.getJSONObject("pre_tokenizer").getJSONArray("pretokenizers").getJSONObject(0)) }
        for ((refusal, expected) in listOf(
            refusal { it.put("normalizer", JSONObject().put("type", "NFKC")) } to "'normalizer.type' is 'NFKC'",
            refusal { it.remove("decoder") } to "'decoder' is missing",
            refusal { it.put("decoder", JSONObject().put("type", "Metaspace")) } to "'decoder.type' is 'Metaspace'",
            refusal { it.put("pre_tokenizer", JSONObject().put("type", "Whitespace")) } to "'pre_tokenizer.type'",
            refusal { it.put("pre_tokenizer", bytes) } to "'pre_tokenizer.add_prefix_space' is true",
            split { it.put("behavior", "Removed") } to "'pre_tokenizer.behavior' is 'Removed'",
            split { it.put("invert", true) } to "'pre_tokenizer.invert' is true",
            split { it.put("pattern", JSONObject().put("Regex", "(a*)*b")) } to "pattern.Regex' is '(a*)*b'",
            split { it.put("pattern", JSONObject().put("String", " ")) } to "'pre_tokenizer.pattern.Regex' is missing",
            model { it.put("type", "Unigram") } to "'model.type' is 'Unigram'",
            model { it.put("dropout", 0.1) } to "'model.dropout' is 0.1",
            model { it.put("end_of_word_suffix", "</w>") } to "'model.end_of_word_suffix' is '</w>'",
            model { it.getJSONObject("vocab").remove("a") } to "lacks 'a'",
            model { it.getJSONObject("vocab").put("zz", 1024) } to "'model.vocab.zz' is 1024",
            model { it.getJSONObject("vocab").put("a", 3) } to "both have the id 3",
            model { it.getJSONArray("merges").put("only") } to "'model.merges' holds 'only'",
            model { it.getJSONArray("merges").put(JSONArray(listOf("q", "zq"))) } to "expected tokens of 'model.vocab'",
            token { it.put("lstrip", true) } to "'added_tokens.lstrip' is true",
            token { it.put("normalized", true) } to "'added_tokens.normalized' is true",
            token { it.put("id", 5) } to "'added_tokens.id' is 5",
            token { it.put("content", "") } to "'added_tokens.content' is ''",
        )) {
            assertTrue("$refusal lacks $expected", expected in refusal)
        }
        assertTrue("vocabulary has 560" in sentenceOf { read(copyOfBase(), 560) })
    }

    @Test
    fun whatIsNoTokenizerIsRefused() {
        val deep = "[".repeat(100_000)
        val unigram = """{"model": {"type": "Unigram"}}"""
        for (content in listOf("", "{}", "[1]", unigram, deep, """{"a": 1, "a": 2}""", "\u00ff")) {
            val file = temporary.newFile().also { it.writeBytes(content.toByteArray(Charsets.ISO_8859_1)) }
            val sentence = sentenceOf { readTokenizer(file, 1024) }
            assertTrue(sentence, sentence.endsWith(".") && '\n' !in sentence && sentence.length < 400)
        }
    }

    @Test
    fun aTextThatStillSpellsAControlTokenIsRefused() {
        val document = copyOfBase()
        val added = document.getJSONArray("added_tokens")
        for (index in 0 until added.length()) added.getJSONObject(index).put("special", false)
        val prompts = promptTokenizer(write(document))
        assertTrue("spells a control token" in sentenceOf { prompts.encodePrompt("<|image_pad|>", 1) })
    }

    @Test
    fun halfOfACharacterIsRefused() {
        val prompts = promptTokenizer(write(copyOfBase()))
        for (text in listOf("\ud83d", "a\ude00b", "\ude00\ud83d")) {
            assertTrue("half of a character" in sentenceOf { prompts.encodePrompt(text) })
        }
    }

    @Test
    fun aTextModelTakesNoImage() {
        val prompts = PromptTokenizer(write(copyOfBase()), modelSpec(null, null, null), PromptSpec("a", null, "b"))
        assertTrue("text only" in sentenceOf { prompts.encodePrompt("x", 1) })
        assertEquals(3, prompts.encodePrompt("#").ids.size)
    }

    @Test
    fun aLongWordIsQuick() {
        val tokenizer = read(copyOfBase())
        val text = "ab".repeat(100_000)
        val started = System.nanoTime()
        val ids = tokenizer.encode(text, tokenizer.cut(text, false))
        assertEquals(text, tokenizer.decode(ids))
        assertTrue("${(System.nanoTime() - started) / 1e9} s", System.nanoTime() - started < 20_000_000_000)
    }
}
