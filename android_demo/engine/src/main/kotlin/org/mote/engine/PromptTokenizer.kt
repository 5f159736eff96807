package org.mote.engine

import java.io.File

/**
 * A prompt as token ids.
 *
 * @property kinds where each of [ids] comes from.
 */
class EncodedPrompt internal constructor(val ids: LongArray, val kinds: List<TokenKind>)

/**
 * Prompts to token ids and ids to text, by the rules of `mote_runtime.tokenizer`: the template of the manifest around a
 * user's text, in which no special token is ever recognised.
 *
 * Throws [MoteException] where [file] is no tokenizer that this reads, or does not fit the model.
 */
class PromptTokenizer(file: File, private val model: ModelSpec, private val prompt: PromptSpec) {
    private val tokenizer = readTokenizer(file, model.vocabSize)

    /** Ids that steer the model: they come from the template only, never from a user's text. */
    private val controlIds: Set<Int>

    init {
        val named = listOfNotNull(model.imageTokenId, model.visionStartTokenId, model.visionEndTokenId)
        for (id in named) {
            if (!tokenizer.isAdded(id)) {
                throw MoteException("$file lacks the added token $id of $MANIFEST_NAME; export the model again")
            }
        }
        controlIds = tokenizer.specialIds + named
    }

    /**
     * Ids of `user_prefix + images + text + user_suffix`.
     *
     * For a text without special tokens these are the ids of the whole string, as in training; a special token spelled
     * out in [text] is encoded as the characters it is made of. Throws [MoteException] where the text cannot be
     * encoded, and where images are given to a model without any.
     */
    fun encodePrompt(text: String, numImages: Int = 0): EncodedPrompt {
        if (hasLoneSurrogate(text)) throw MoteException("the prompt holds half of a character; pass valid Unicode")
        val before = if (numImages > 0) prompt.userPrefix + imageText().repeat(numImages) else prompt.userPrefix
        val after = prompt.userSuffix
        val head = tokenizer.cut(before, special = true)
        val tail = tokenizer.cut(after, special = true)
        // What stands between the template's special tokens nearest to the text may merge with it, so it is encoded
        // together with the text.
        val headCount = head.indexOfLast { it.id in controlIds } + 1
        val tailIndex = tail.indexOfFirst { it.id in controlIds }.let { if (it < 0) tail.size else it }
        val seamBefore = before.substring(head.getOrNull(headCount - 1)?.end ?: 0)
        val seamAfter = after.substring(0, tail.getOrNull(tailIndex)?.start ?: after.length)
        val middle = (seamBefore + text + seamAfter).let { tokenizer.encode(it, tokenizer.cut(it, special = false)) }
        if (middle.any { it in controlIds }) {
            throw MoteException("the prompt spells a control token which this tokenizer cannot take as plain text")
        }
        val first = tokenizer.encode(before, head.subList(0, headCount))
        val last = tokenizer.encode(after, tail.subList(tailIndex, tail.size))
        val ids = first + middle + last
        checkPads(ids, numImages)
        val kinds = first.map(::templateKind) + middleKinds(middle, seamBefore, seamAfter) + last.map(::templateKind)
        return EncodedPrompt(LongArray(ids.size) { ids[it].toLong() }, kinds)
    }

    private fun templateKind(id: Int) = if (id == model.imageTokenId) TokenKind.IMAGE else TokenKind.TEMPLATE

    /** Tokens that lie wholly in the template's text are the template's, by the bytes they stand for. */
    private fun middleKinds(ids: List<Int>, seamBefore: String, seamAfter: String): List<TokenKind> {
        val lengths = ids.map { tokenizer.decodeBytes(listOf(it)).size }
        val textStart = seamBefore.toByteArray(Charsets.UTF_8).size
        val textEnd = lengths.sum() - seamAfter.toByteArray(Charsets.UTF_8).size
        var end = 0
        return lengths.map { length ->
            val start = end
            end += length
            if (end <= textStart || start >= textEnd) TokenKind.TEMPLATE else TokenKind.PROMPT
        }
    }

    private fun imageText(): String {
        val pads = model.numImageTokens
        val pad = model.imageTokenId?.let(tokenizer::token)
        if (prompt.image == null || pads == null || pad == null) {
            throw MoteException("model ${shown(model.name)} is text only; leave the image out")
        }
        return prompt.image.replace(IMAGE_PADS, pad.repeat(pads))
    }

    private fun checkPads(ids: List<Int>, numImages: Int) {
        val pad = model.imageTokenId ?: return
        val found = ids.count { it == pad }
        val expected = numImages * (model.numImageTokens ?: 0)
        if (found != expected) {
            throw MoteException(
                "tokenizer.json makes $found image tokens of the prompt template; expected $expected, export anew",
            )
        }
    }

    /** The text of [ids] without special tokens; bytes that are not UTF-8 become U+FFFD. */
    fun decode(ids: List<Int>): String = tokenizer.decode(ids)

    /**
     * What a single token is called in a view of tokens: its text, a special token's name, or "" for a part of a
     * character.
     */
    fun label(id: Int): String {
        if (id in tokenizer.specialIds) return tokenizer.token(id).orEmpty()
        val text = tokenizer.decode(listOf(id))
        return if (REPLACEMENT in text) "" else text
    }

    /** A decoder for one answer, token by token. */
    fun stream(): StreamingDecoder = StreamingDecoder(this)

    private fun hasLoneSurrogate(text: String): Boolean {
        var index = 0
        while (index < text.length) {
            val codePoint = text.codePointAt(index)
            if (codePoint in 0xd800..0xdfff) return true
            index += Character.charCount(codePoint)
        }
        return false
    }
}

/**
 * Decodes an answer token by token; the pieces put together are [PromptTokenizer.decode] of all of its ids. A character
 * may be spread over tokens, so text that ends in an incomplete one is held back.
 */
class StreamingDecoder internal constructor(private val tokenizer: PromptTokenizer) {
    // Every token stands for bytes of its own, so what was handed out need not be decoded again.
    private val pending = ArrayList<Int>()

    /** The text that became certain with this token; empty while a character is incomplete. */
    fun push(id: Int): String {
        pending += id
        val text = tokenizer.decode(pending)
        return if (text.endsWith(REPLACEMENT)) "" else text.also { pending.clear() }
    }

    /** What is still held back at the end of the answer, with U+FFFD for a character never completed. */
    fun flush(): String = tokenizer.decode(pending).also { pending.clear() }
}
