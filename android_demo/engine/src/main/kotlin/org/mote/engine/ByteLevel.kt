package org.mote.engine

/**
 * Byte-level text of GPT-2's tokenizer (Radford et al. 2019, section 2.2): each byte is written as one printable
 * character, bytes that print as themselves, the others as U+0100 and following.
 */
internal object ByteLevel {
    private const val FIRST_SUBSTITUTE = 0x100

    /** The character of each byte. */
    val characters: CharArray

    private val bytes: Map<Char, Byte>

    init {
        val printable = ('!'..'~') + ('\u00a1'..'\u00ac') + ('\u00ae'..'\u00ff')
        val others = (0..255).map { it.toChar() } - printable.toSet()
        characters = CharArray(256) { byte ->
            val substitute = others.indexOf(byte.toChar())
            if (substitute < 0) byte.toChar() else (FIRST_SUBSTITUTE + substitute).toChar()
        }
        bytes = characters.indices.associate { characters[it] to it.toByte() }
    }

    /**
     * The bytes that a token stands for; one with any other character, as added tokens may be, stands for its own
     * UTF-8.
     */
    fun decode(token: String): ByteArray {
        val result = ByteArray(token.length)
        for (i in token.indices) result[i] = bytes[token[i]] ?: return token.toByteArray(Charsets.UTF_8)
        return result
    }
}

internal const val REPLACEMENT = '\ufffd'

/**
 * UTF-8 to text; each part that is no UTF-8 becomes one U+FFFD, where a part is as long as it could begin a character
 * (Unicode 15, section 3.9, "maximal subpart"). Spelled out, since Android's own decoders have not always cut such
 * parts alike.
 */
internal fun decodeUtf8(bytes: ByteArray): String {
    val text = StringBuilder(bytes.size)
    var i = 0
    while (i < bytes.size) {
        val lead = bytes[i++].toInt() and 0xff
        var missing = when (lead) {
            in 0x00..0x7f -> 0
            in 0xc2..0xdf -> 1
            in 0xe0..0xef -> 2
            in 0xf0..0xf4 -> 3
            else -> -1
        }
        if (missing < 0) {
            text.append(REPLACEMENT)
            continue
        }
        var codePoint = if (missing == 0) lead else lead and (0x3f shr missing)
        // The second byte's range keeps out longer forms than needed, surrogates and what is beyond Unicode.
        var range = when (lead) {
            0xe0 -> 0xa0..0xbf
            0xed -> 0x80..0x9f
            0xf0 -> 0x90..0xbf
            0xf4 -> 0x80..0x8f
            else -> 0x80..0xbf
        }
        while (missing > 0 && i < bytes.size && (bytes[i].toInt() and 0xff) in range) {
            codePoint = (codePoint shl 6) or (bytes[i++].toInt() and 0x3f)
            range = 0x80..0xbf
            missing--
        }
        if (missing == 0) text.appendCodePoint(codePoint) else text.append(REPLACEMENT)
    }
    return text.toString()
}
