package org.mote.demo.data

import java.io.File
import java.io.IOException
import java.io.InputStream
import org.mote.engine.Manifest
import org.mote.engine.MoteException

/** A model to be copied: the files of one export, or of several in subfolders, with the way to open each. */
class ModelSource(val name: String, val files: List<Entry>) {
    /**
     * @property path relative to the model's folder.
     * @property bytes 0 where nobody knows.
     */
    class Entry(val path: String, val bytes: Long, val open: () -> InputStream) {
        /** What it may have at most: space was looked for on the word of whoever offers it. */
        val limit: Long get() = if (bytes > 0) bytes else MAX_UNKNOWN_BYTES
    }

    val bytes: Long get() = files.sumOf { it.bytes }

    private companion object {
        const val MAX_UNKNOWN_BYTES = 64L shl 20
    }
}

/** How far a copy is. @property bytes of [total]; all of them while the sums of the files are checked. */
class CopyProgress(val name: String, val bytes: Long, val total: Long) {
    val isChecking: Boolean get() = bytes >= total
}

/**
 * Copies a model into [target]: under another name, checked by the engine with all its sums, then renamed. What goes
 * wrong, or is cancelled, leaves nothing behind. Blocking. Throws [MoteException], [IOException] and
 * [java.util.concurrent.CancellationException].
 *
 * @param told hears of the progress, at most a hundred times and on this thread.
 */
fun copyModel(source: ModelSource, target: File, isCancelled: () -> Boolean, told: (CopyProgress) -> Unit) {
    val part = target.unfinished()
    try {
        part.deleteRecursively()
        copyFiles(source, part, isCancelled, told)
        told(CopyProgress(source.name, source.bytes, source.bytes))
        val manifests = part.walkTopDown().maxDepth(2).filter { it.name == ModelStore.MANIFEST }
        val exports = manifests.mapNotNull { it.parentFile }.toList()
        for (export in exports.ifEmpty { listOf(part) }) Manifest.read(export).verify(hashes = true)
        target.deleteRecursively()
        if (!part.renameTo(target)) throw IOException("${part.name} cannot be renamed to ${target.name}")
    } catch (error: MoteException) {
        // The engine names the folder that it saw, which is not where anybody would look.
        throw MoteException(error.message.orEmpty().replace(part.path, source.name), error)
    } finally {
        part.deleteRecursively()
    }
}

private fun copyFiles(source: ModelSource, part: File, isCancelled: () -> Boolean, told: (CopyProgress) -> Unit) {
    val total = source.bytes.coerceAtLeast(1)
    var done = 0L
    var lastPercent = -1L
    for (entry in source.files) {
        File(part, entry.path).writeAtomically { out ->
            entry.open().use { stream ->
                stream.copyBounded(out, entry.limit, isCancelled) { count ->
                    done += count
                    val percent = (done * 100 / total).coerceAtMost(99)
                    if (percent != lastPercent) told(CopyProgress(source.name, done.coerceAtMost(total - 1), total))
                    lastPercent = percent
                }
            }
        }
    }
}
