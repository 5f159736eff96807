package org.mote.demo.data

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.io.OutputStream
import java.util.concurrent.CancellationException

private const val PART = ".part"
private const val CHUNK = 1 shl 16

/** Names that are never part of a listing: what is being written, or was left behind when that was cut off. */
internal fun isUnfinished(name: String): Boolean = name.endsWith(PART)

/** The name under which a file or folder is written before it is renamed. */
internal fun File.unfinished(): File = File(parentFile, name + PART)

/**
 * Writes this file so that a reader finds the old content or the new one whole, whatever happens meanwhile. Creates the
 * folder. Throws [IOException].
 */
internal fun File.writeAtomically(write: (OutputStream) -> Unit) {
    val part = unfinished()
    part.parentFile?.mkdirs()
    try {
        FileOutputStream(part).use {
            write(it)
            it.fd.sync()
        }
        if (!part.renameTo(this)) throw IOException("$part cannot be renamed to $name")
    } finally {
        part.delete()
    }
}

internal fun File.writeAtomically(text: String): Unit = writeAtomically { it.write(text.toByteArray()) }

/** Reads a text of at most [limit] bytes. Throws [IOException]. */
internal fun File.readBounded(limit: Long): String {
    if (length() > limit) throw IOException("$name has ${length()} bytes; expected at most $limit")
    return readText()
}

/**
 * Copies a stream to its end.
 *
 * @param limit more bytes than this are refused with an [IOException].
 * @param told hears the number of bytes of each piece that was copied.
 * @param isCancelled asked before each piece; true ends the copy with a [CancellationException].
 */
internal fun InputStream.copyBounded(
    out: OutputStream,
    limit: Long,
    isCancelled: () -> Boolean = { false },
    told: (Int) -> Unit = {},
) {
    val chunk = ByteArray(CHUNK)
    var total = 0L
    while (true) {
        if (isCancelled()) throw CancellationException()
        val count = read(chunk)
        if (count < 0) return
        total += count
        if (total > limit) throw IOException("more than $limit bytes")
        out.write(chunk, 0, count)
        told(count)
    }
}

/** Bytes of all files below this folder, or of this file. */
internal fun File.totalBytes(): Long = walkTopDown().filter { it.isFile }.sumOf { it.length() }

/** Removes a folder such that it is gone from listings at once, and half of it is never seen. */
internal fun File.deleteFolder() {
    val doomed = unfinished()
    doomed.deleteRecursively()
    if (renameTo(doomed)) doomed.deleteRecursively() else deleteRecursively()
}
