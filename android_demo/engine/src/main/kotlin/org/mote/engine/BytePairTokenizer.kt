package org.mote.engine

import java.io.ByteArrayOutputStream
import java.text.Normalizer
import java.util.PriorityQueue

/**
 * Byte-level byte-pair encoding (Sennrich et al. 2016) by a `tokenizer.json`, as the library `tokenizers` computes it;
 * see [readTokenizer] for which files.
 *
 * @property normalize whether text is brought to Unicode's normalization form C first.
 * @property byteIds the token of each byte.
 * @property wholeWords where a piece that is a token is that token whatever the merges would make of it: all of them.
 * @property tokens the text of each id; null where there is no such token.
 */
internal class BytePairTokenizer(
    private val normalize: Boolean,
    private val preTokenizer: PreTokenizer,
    private val byteIds: IntArray,
    private val merges: MergeTable,
    private val wholeWords: Map<String, Int>?,
    private val added: AddedTokens,
    private val tokens: Array<String?>,
) {
    /** Ids of the added tokens that are called special. */
    val specialIds: Set<Int> get() = added.specialIds

    /** The text of a token as it stands in the file, or null. */
    fun token(id: Int): String? = tokens.getOrNull(id)

    fun isAdded(id: Int): Boolean = id in added.ids

    /** Cuts [text] at its added tokens; without [special], special ones are text like any other. */
    fun cut(text: String, special: Boolean): List<Piece> = added.cut(text, special)

    /** Ids of the pieces of [text] that [cut] gave. */
    fun encode(text: String, pieces: List<Piece>): List<Int> {
        val ids = ArrayList<Int>()
        for (piece in pieces) {
            if (piece.id != null) ids += piece.id else encodeText(text.substring(piece.start, piece.end), ids)
        }
        return ids
    }

    private fun encodeText(text: String, ids: MutableList<Int>) {
        val normalized = if (normalize) Normalizer.normalize(text, Normalizer.Form.NFC) else text
        for (word in preTokenizer.split(normalized)) encodeWord(word, ids)
    }

    private fun encodeWord(word: String, ids: MutableList<Int>) {
        val bytes = word.toByteArray(Charsets.UTF_8)
        if (wholeWords != null) {
            val whole = String(CharArray(bytes.size) { ByteLevel.characters[bytes[it].toInt() and 0xff] })
            wholeWords[whole]?.let { ids += it; return }
        }
        val symbols = Symbols(IntArray(bytes.size) { byteIds[bytes[it].toInt() and 0xff] })
        symbols.mergeAll(merges)
        symbols.appendTo(ids)
    }

    /** The bytes of [ids] without special tokens; ids that are no tokens are left out. */
    fun decodeBytes(ids: List<Int>): ByteArray {
        val bytes = ByteArrayOutputStream()
        for (id in ids) {
            if (id !in specialIds) token(id)?.let { ByteLevel.decode(it).run { bytes.write(this, 0, size) } }
        }
        return bytes.toByteArray()
    }

    /** The text of [ids] without special tokens; bytes that are not UTF-8 become U+FFFD. */
    fun decode(ids: List<Int>): String = decodeUtf8(decodeBytes(ids))
}

/** A part of a text: an added token, or text between them, whose [id] is null. */
internal class Piece(val start: Int, val end: Int, val id: Int?)

/** The pairs that may be merged: for each the rank, of which the lowest goes first, and the token it makes. */
internal class MergeTable(capacity: Int) {
    // Open addressing in plain arrays: 150,000 merges as boxed objects would take ten times the memory.
    private val mask = Integer.highestOneBit(maxOf(16, 4 * capacity - 1)) - 1
    private val keys = LongArray(mask + 1) { -1 }
    private val ranks = IntArray(mask + 1)
    private val results = IntArray(mask + 1)

    /** A later merge of the same pair replaces the earlier one. */
    fun put(left: Int, right: Int, rank: Int, result: Int) {
        val slot = slot(key(left, right))
        keys[slot] = key(left, right)
        ranks[slot] = rank
        results[slot] = result
    }

    /** Where the pair stands, for [rank] and [result]; -1 if it is not to be merged. */
    fun find(left: Int, right: Int): Int = slot(key(left, right)).let { if (keys[it] == -1L) -1 else it }

    fun rank(slot: Int): Int = ranks[slot]

    fun result(slot: Int): Int = results[slot]

    private fun key(left: Int, right: Int): Long = (left.toLong() shl 32) or right.toLong()

    private fun slot(key: Long): Int {
        var slot = ((key * GOLDEN_RATIO) ushr 32).toInt() and mask
        while (keys[slot] != -1L && keys[slot] != key) slot = (slot + 1) and mask
        return slot
    }

    private companion object {
        const val GOLDEN_RATIO = -0x61c8864680b583ebL // 2^64 divided by it: spreads keys that lie close together
    }
}

/** A word in the making: its tokens as a linked list, whose merged neighbours are taken out. */
private class Symbols(private val ids: IntArray) {
    private class Candidate(val rank: Int, val left: Int, val result: Int)

    private val next = IntArray(ids.size) { it + 1 }
    private val previous = IntArray(ids.size) { it - 1 }
    private val queue = PriorityQueue(compareBy<Candidate> { it.rank }.thenBy { it.left })

    /** Lowest rank first, leftmost of equal ones. */
    fun mergeAll(merges: MergeTable) {
        for (left in 0 until ids.size - 1) offer(merges, left)
        while (true) {
            val candidate = queue.poll() ?: return
            val left = candidate.left
            if (ids[left] == GONE || next[left] >= ids.size) continue
            val slot = merges.find(ids[left], ids[next[left]])
            if (slot < 0 || merges.result(slot) != candidate.result) continue // a neighbour was merged since
            ids[left] = candidate.result
            remove(next[left])
            offer(merges, left)
            if (previous[left] >= 0) offer(merges, previous[left])
        }
    }

    private fun offer(merges: MergeTable, left: Int) {
        if (next[left] >= ids.size) return
        val slot = merges.find(ids[left], ids[next[left]])
        if (slot >= 0) queue += Candidate(merges.rank(slot), left, merges.result(slot))
    }

    private fun remove(index: Int) {
        ids[index] = GONE
        next[previous[index]] = next[index]
        if (next[index] < ids.size) previous[next[index]] = previous[index]
    }

    fun appendTo(out: MutableList<Int>) {
        var index = 0
        while (index < ids.size) {
            out += ids[index]
            index = next[index]
        }
    }

    private companion object {
        const val GONE = -1
    }
}

/** One entry of `added_tokens`. */
internal class AddedToken(val id: Int, val content: String, val isSpecial: Boolean)

/** Finds added tokens in a text: the leftmost first, of several there the longest. */
internal class AddedTokens(tokens: List<AddedToken>) {
    private val byFirst = tokens.groupBy { it.content[0] }.mapValues { (_, group) ->
        group.sortedByDescending { it.content.length }
    }
    val ids: Set<Int> = tokens.mapTo(HashSet()) { it.id }
    val specialIds: Set<Int> = tokens.filter { it.isSpecial }.mapTo(HashSet()) { it.id }

    /** A special token that is not asked for still ends where it would: no other one is seen inside of it. */
    fun cut(text: String, special: Boolean): List<Piece> {
        val pieces = ArrayList<Piece>()
        var textStart = 0
        var index = 0
        while (index < text.length) {
            val token = byFirst[text[index]]?.firstOrNull { text.startsWith(it.content, index) }
            if (token == null) {
                index++
                continue
            }
            val end = index + token.content.length
            if (special || !token.isSpecial) {
                if (index > textStart) pieces += Piece(textStart, index, null)
                pieces += Piece(index, end, token.id)
                textStart = end
            }
            index = end
        }
        if (textStart < text.length) pieces += Piece(textStart, text.length, null)
        return pieces
    }
}
