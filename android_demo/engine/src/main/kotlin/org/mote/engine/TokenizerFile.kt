package org.mote.engine

import java.io.File
import java.io.IOException

private const val MAX_TOKENIZER_BYTES = 128L shl 20
private const val MAX_TOKEN_LENGTH = 1 shl 16
private const val MAX_ADDED_TOKENS = 10_000

/**
 * Reads a `tokenizer.json` of byte-level BPE as Qwen2, Llama 3 and GPT-2 have it: normalizer NFC or none; pre-tokenizer
 * ByteLevel, before it any Split by a known expression; decoder ByteLevel. What asks for anything else, which this
 * would compute differently, is refused. Truncation, padding and the post-processor, which the prompts of mote never
 * use, are not looked at.
 *
 * In Kotlin and not by the library `tokenizers`: there is no build of it for Android that one could rely on, and
 * parsing a file from outside in a managed language can at worst throw.
 *
 * Throws [MoteException] for what cannot be read, and for more tokens than [vocabSize].
 */
internal fun readTokenizer(file: File, vocabSize: Int): BytePairTokenizer {
    val document = try {
        val size = file.length()
        if (size > MAX_TOKENIZER_BYTES) throw IOException("it has $size bytes, more than $MAX_TOKENIZER_BYTES")
        StrictJson.parse(file.readBytes())
    } catch (error: IOException) {
        throw MoteException("$file is not a readable tokenizer: ${shown(error.message)}", error)
    }
    if (document !is Map<*, *>) throw MoteException("$file is not a readable tokenizer: it holds ${shown(document)}")
    return TokenizerFile(Fields(document, file.name), vocabSize).read()
}

private class TokenizerFile(private val top: Fields, private val vocabSize: Int) {
    fun read(): BytePairTokenizer {
        val normalizer = top.optionalSection("normalizer")
        normalizer?.choice("type", listOf("NFC"))
        top.section("decoder").choice("type", listOf("ByteLevel"))
        val preTokenizer = readPreTokenizer(top.section("pre_tokenizer"))
        val model = top.section("model")
        checkModel(model)
        val vocabulary = readVocabulary(model)
        val added = readAddedTokens(vocabulary)
        return BytePairTokenizer(
            normalize = normalizer != null,
            preTokenizer = preTokenizer,
            byteIds = IntArray(256) { vocabulary.getValue(ByteLevel.characters[it].toString()) },
            merges = readMerges(model, vocabulary),
            wholeWords = vocabulary.takeIf { !model.isNull("ignore_merges") && model.flag("ignore_merges") },
            added = AddedTokens(added),
            tokens = tokensById(vocabulary, added),
        )
    }

    private fun checkModel(model: Fields) {
        model.choice("type", listOf("BPE"))
        if (!model.isNull("dropout")) throw model.refuse("dropout", "null")
        for (affix in listOf("continuing_subword_prefix", "end_of_word_suffix")) {
            if (!model.isNull(affix) && model.value(affix) != "") throw model.refuse(affix, "null or empty")
        }
    }

    private fun readPreTokenizer(section: Fields): PreTokenizer {
        val type = section.choice("type", listOf("ByteLevel", "Sequence"))
        val steps = if (type == "ByteLevel") listOf(section) else {
            section.sections("pretokenizers", "pre_tokenizer.")
        }
        val last = steps.lastOrNull() ?: throw section.refuse("pretokenizers", "ByteLevel as the last one")
        last.choice("type", listOf("ByteLevel"))
        if (last.flag("add_prefix_space")) throw last.refuse("add_prefix_space", "false")
        val patterns = steps.dropLast(1).map(::readSplit)
        val usesOwn = last.isNull("use_regex") || last.flag("use_regex")
        return PreTokenizer(if (usesOwn) patterns + PreTokenizer.GPT2 else patterns)
    }

    private fun readSplit(step: Fields): String {
        step.choice("type", listOf("Split"))
        step.choice("behavior", listOf("Isolated"))
        if (step.flag("invert")) throw step.refuse("invert", "false")
        val pattern = step.section("pattern")
        return pattern.choice("Regex", PreTokenizer.KNOWN.toList())
    }

    private fun readVocabulary(model: Fields): Map<String, Int> {
        val section = model.section("vocab")
        val vocabulary = HashMap<String, Int>(2 * section.keys.size)
        for (token in section.keys) vocabulary[token as String] = section.integer(token, 0, vocabSize - 1)
        for (character in ByteLevel.characters) {
            if (character.toString() !in vocabulary) {
                throw MoteException("tokenizer.json: field 'model.vocab' lacks '$character', the token of a byte")
            }
        }
        return vocabulary
    }

    private fun readMerges(model: Fields, vocabulary: Map<String, Int>): MergeTable {
        val merges = model.list("merges")
        val table = MergeTable(merges.size)
        merges.forEachIndexed { rank, merge ->
            // As a pair since tokenizers 0.20, before that as one string.
            val pair = if (merge is String) merge.split(' ') else merge as? List<*>
            val (left, right) = pair?.takeIf { it.size == 2 && it.all { half -> half is String } }
                ?: throw badMerge(merge, "two tokens")
            val result = vocabulary["$left$right"]
            if (left !in vocabulary || right !in vocabulary || result == null) {
                throw badMerge(merge, "tokens of 'model.vocab'")
            }
            table.put(vocabulary.getValue(left as String), vocabulary.getValue(right as String), rank, result)
        }
        return table
    }

    private fun badMerge(merge: Any?, expected: String) =
        MoteException("tokenizer.json: field 'model.merges' holds ${shown(merge)}; expected $expected")

    /** Ids are checked to be those that `tokenizers` gives: it numbers new tokens itself, whatever the file says. */
    private fun readAddedTokens(vocabulary: Map<String, Int>): List<AddedToken> {
        val tokens = LinkedHashMap<String, AddedToken>()
        var free = vocabulary.size
        val entries = if (top.isNull("added_tokens")) emptyList() else top.sections("added_tokens", "added_tokens.")
        if (entries.size > MAX_ADDED_TOKENS) throw top.refuse("added_tokens", "at most $MAX_ADDED_TOKENS of them")
        for (entry in entries) {
            val content = entry.text("content", MAX_TOKEN_LENGTH)
            if (content.isEmpty() || content in tokens) throw entry.refuse("content", "a new token")
            for (key in listOf("single_word", "lstrip", "rstrip", "normalized")) {
                if (entry.flag(key)) throw entry.refuse(key, "false, for ${shown(content)}")
            }
            val id = vocabulary[content] ?: free
            free = maxOf(free, id + 1)
            if (id >= vocabSize) throw tooMany(id + 1)
            entry.integerOf("id", id)
            tokens[content] = AddedToken(id, content, entry.flag("special"))
        }
        return tokens.values.toList()
    }

    private fun tooMany(size: Int) =
        MoteException("tokenizer.json has $size tokens or more, but the model's vocabulary has $vocabSize")

    private fun tokensById(vocabulary: Map<String, Int>, added: List<AddedToken>): Array<String?> {
        val size = maxOf(vocabulary.values.max(), added.maxOfOrNull { it.id } ?: 0) + 1
        val tokens = arrayOfNulls<String>(size)
        for ((token, id) in vocabulary + added.associate { it.content to it.id }) {
            if (tokens[id] != null) {
                throw MoteException("tokenizer.json: ${shown(tokens[id])} and ${shown(token)} both have the id $id")
            }
            tokens[id] = token
        }
        return tokens
    }
}
