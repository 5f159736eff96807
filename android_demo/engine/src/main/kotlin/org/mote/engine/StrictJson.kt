package org.mote.engine

import android.util.JsonReader
import android.util.JsonToken
import java.io.ByteArrayInputStream
import java.io.IOException
import java.io.InputStreamReader
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.CodingErrorAction

/**
 * JSON from outside: RFC 8259 and no more, each key once, a limited depth.
 *
 * `org.json` would take comments, bare words and repeated keys, and overflows the stack on `[[[[...`. A document is
 * made of Map, List, String, Long (every integer that fits), Double (every other number), Boolean and null.
 */
internal object StrictJson {
    private const val MAX_DEPTH = 64

    /** Throws [IOException] whose message says what is wrong. */
    fun parse(content: ByteArray): Any? {
        requireUtf8(content)
        try {
            JsonReader(InputStreamReader(ByteArrayInputStream(content), Charsets.UTF_8)).use { reader ->
                val document = value(reader, 0)
                if (reader.peek() != JsonToken.END_DOCUMENT) throw IOException("something follows the document")
                return document
            }
        } catch (error: RuntimeException) { // IllegalStateException and NumberFormatException, by JsonReader's contract
            throw IOException(error.message, error)
        }
    }

    private fun requireUtf8(content: ByteArray) {
        val decoder = Charsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT)
        try {
            decoder.decode(ByteBuffer.wrap(content))
        } catch (error: CharacterCodingException) {
            throw IOException("it is not UTF-8", error)
        }
    }

    private fun value(reader: JsonReader, depth: Int): Any? {
        if (depth > MAX_DEPTH) throw IOException("it is nested more than $MAX_DEPTH deep")
        return when (reader.peek()) {
            JsonToken.BEGIN_OBJECT -> readObject(reader, depth)
            JsonToken.BEGIN_ARRAY -> readArray(reader, depth)
            JsonToken.STRING -> reader.nextString()
            JsonToken.NUMBER -> reader.nextString().let { it.toLongOrNull() ?: it.toDouble() }
            JsonToken.BOOLEAN -> reader.nextBoolean()
            JsonToken.NULL -> null.also { reader.nextNull() }
            else -> throw IOException("a value is missing")
        }
    }

    private fun readObject(reader: JsonReader, depth: Int): Map<String, Any?> {
        val fields = LinkedHashMap<String, Any?>()
        reader.beginObject()
        while (reader.hasNext()) {
            val key = reader.nextName()
            if (key in fields) throw IOException("the key ${shown(key)} occurs twice in one object")
            fields[key] = value(reader, depth + 1)
        }
        reader.endObject()
        return fields
    }

    private fun readArray(reader: JsonReader, depth: Int): List<Any?> {
        val items = ArrayList<Any?>()
        reader.beginArray()
        while (reader.hasNext()) items += value(reader, depth + 1)
        reader.endArray()
        return items
    }
}

private const val SHOWN_CHARACTERS = 60

/** A value for a message: on one line and short, since it may come from a hostile file. */
internal fun shown(value: Any?): String {
    val text = when (value) {
        is String -> "'${value.take(2 * SHOWN_CHARACTERS)}'"
        is Map<*, *> -> "an object"
        is List<*> -> value.take(SHOWN_CHARACTERS).joinToString(", ", "[", "]") { shown(it) }
        else -> value.toString()
    }
    val printable = text.map { if (it.isISOControl() || it.isSurrogate()) '?' else it }.joinToString("")
    return if (printable.length <= SHOWN_CHARACTERS) printable else printable.take(SHOWN_CHARACTERS) + "..."
}

/**
 * One JSON object whose fields are taken out with a check each; a refusal is a [MoteException] that names the field.
 */
internal class Fields(private val fields: Map<*, *>, private val document: String, private val prefix: String = "") {
    val keys: Set<*> get() = fields.keys

    fun refuse(key: String, expected: String): MoteException {
        val found = if (key in fields.keys) shown(fields[key]) else "missing"
        return MoteException("$document: field '$prefix$key' is $found; expected $expected")
    }

    fun isNull(key: String): Boolean = fields[key] == null

    fun value(key: String): Any? = fields[key]

    fun long(key: String, range: LongRange): Long =
        (fields[key] as? Long)?.takeIf { it in range }
            ?: throw refuse(key, "an integer from ${range.first} to ${range.last}")

    fun integer(key: String, low: Int, high: Int): Int = long(key, low.toLong()..high.toLong()).toInt()

    fun optionalInteger(key: String, low: Int, high: Int): Int? = if (isNull(key)) null else integer(key, low, high)

    fun integerOf(key: String, vararg allowed: Int): Int =
        (fields[key] as? Long)?.takeIf { value -> allowed.any { it.toLong() == value } }?.toInt()
            ?: throw refuse(key, allowed.joinToString(" or "))

    fun integers(key: String, low: Int, high: Int, maxLength: Int): IntArray {
        val items = (fields[key] as? List<*>)?.takeIf { it.size <= maxLength }
        if (items == null || !items.all { it is Long && it in low.toLong()..high.toLong() }) {
            throw refuse(key, "a list of at most $maxLength integers from $low to $high")
        }
        if (items.toSet().size != items.size) throw refuse(key, "a list without duplicates")
        return IntArray(items.size) { (items[it] as Long).toInt() }
    }

    fun number(key: String): Double = finite(fields[key]) ?: throw refuse(key, "a finite number")

    fun threeNumbers(key: String): DoubleArray {
        val numbers = (fields[key] as? List<*>)?.takeIf { it.size == 3 }?.mapNotNull(::finite)
        if (numbers == null || numbers.size != 3) throw refuse(key, "a list of three finite numbers")
        return numbers.toDoubleArray()
    }

    fun text(key: String, maxLength: Int): String =
        (fields[key] as? String)?.takeIf { it.codePointCount(0, it.length) <= maxLength }
            ?: throw refuse(key, "a string of at most $maxLength characters")

    fun optionalText(key: String, maxLength: Int): String? = if (isNull(key)) null else text(key, maxLength)

    fun choice(key: String, allowed: List<String>): String =
        (fields[key] as? String)?.takeIf { it in allowed }
            ?: throw refuse(key, allowed.joinToString(" or ") { "'$it'" })

    fun flag(key: String): Boolean = fields[key] as? Boolean ?: throw refuse(key, "true or false")

    fun list(key: String): List<*> = fields[key] as? List<*> ?: throw refuse(key, "a list")

    /** The objects of a list, whose fields messages call [prefix] and their name. */
    fun sections(key: String, prefix: String): List<Fields> =
        list(key).map { Fields(it as? Map<*, *> ?: throw refuse(key, "a list of objects"), document, prefix) }

    fun section(key: String): Fields =
        Fields(fields[key] as? Map<*, *> ?: throw refuse(key, "an object"), document, "$prefix$key.")

    fun optionalSection(key: String): Fields? = if (isNull(key)) null else section(key)

    private fun finite(value: Any?): Double? = when (value) {
        is Long -> value.toDouble()
        is Double -> value.takeIf { it.isFinite() }
        else -> null
    }
}
