package org.mote.engine

import java.util.regex.Pattern

/**
 * Cuts text into the pieces that BPE may merge within. A file names its regular expression; only those below are taken,
 * since a foreign one could run for hours on a short text, and since `java.util.regex` is another implementation on
 * Android (ICU) than on the JVM: these were chosen so that both agree. To add one, add it here and to the texts of the
 * golden test.
 */
internal class PreTokenizer(patterns: List<String>) {
    private val patterns = patterns.map(::compile)

    /** The pieces of [text] in order, none empty; together they are the text. */
    fun split(text: String): List<String> = patterns.fold(listOf(text)) { pieces, pattern ->
        pieces.flatMap { isolate(pattern, it) }
    }.filter { it.isNotEmpty() }

    /** Each match is a piece of its own, and so is each text between two. */
    private fun isolate(pattern: Pattern, text: String): List<String> {
        val pieces = ArrayList<String>()
        val matcher = pattern.matcher(text)
        var end = 0
        while (matcher.find()) {
            if (matcher.start() > end) pieces += text.substring(end, matcher.start())
            pieces += matcher.group()
            end = matcher.end()
        }
        if (end < text.length) pieces += text.substring(end)
        return pieces
    }

    companion object {
        const val GPT2 = """'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
        private const val CONTRACTIONS = """(?i:'s|'t|'re|'ve|'m|'ll|'d)"""
        private const val AFTER_NUMBERS = """ ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
        const val QWEN2 = """$CONTRACTIONS|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|$AFTER_NUMBERS"""
        const val LLAMA3 = """$CONTRACTIONS|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|$AFTER_NUMBERS"""
        val KNOWN = setOf(GPT2, QWEN2, LLAMA3)

        /**
         * Unicode's White_Space, which `\s` is to the library that trained the tokenizers, but on Java only with a
         * flag.
         */
        const val SPACES = """\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"""

        private fun compile(pattern: String): Pattern {
            require(pattern in KNOWN)
            val spelledOut = pattern
                .replace("""[^\s""", "[^$SPACES")
                .replace("""\s""", "[$SPACES]")
                .replace("""\S""", "[^$SPACES]")
            return Pattern.compile(spelledOut, Pattern.UNICODE_CASE)
        }
    }
}
