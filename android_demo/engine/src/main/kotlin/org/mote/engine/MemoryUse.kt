package org.mote.engine

import java.io.File
import java.io.IOException

/**
 * Resident memory of this process, in bytes.
 *
 * @property atMs when, as in [Timings].
 * @property anonymousBytes the process's own.
 * @property fileBytes mapped from files, such as weights; the system can drop it and read it again.
 * @property peakAnonymousBytes the greatest that this session has seen.
 * @property peakFileBytes the greatest that this session has seen.
 */
class MemoryUse(
    val atMs: Double,
    val anonymousBytes: Long,
    val fileBytes: Long,
    val peakAnonymousBytes: Long = anonymousBytes,
    val peakFileBytes: Long = fileBytes,
) {
    /** The same moment, with what was seen before taken into the peaks. */
    internal fun withPeaksOf(before: MemoryUse): MemoryUse = MemoryUse(
        atMs,
        anonymousBytes,
        fileBytes,
        maxOf(peakAnonymousBytes, before.peakAnonymousBytes),
        maxOf(peakFileBytes, before.peakFileBytes),
    )

    companion object {
        private const val KILOBYTE = 1024L
        private val status = File("/proc/self/status")

        /** Now; zeros where the system does not say (Linux before 4.5). */
        fun now(): MemoryUse {
            var anonymous = 0L
            var file = 0L
            try {
                status.forEachLine { line ->
                    if (line.startsWith("RssAnon:")) anonymous = kilobytes(line)
                    if (line.startsWith("RssFile:")) file = kilobytes(line)
                }
            } catch (_: IOException) {
                // Some vendors' kernels keep it from apps; a figure that is missing must not cost the answer.
            }
            return MemoryUse(Clock.nowMs(), anonymous, file)
        }

        private fun kilobytes(line: String): Long =
            (line.filter { it in '0'..'9' }.toLongOrNull() ?: 0L) * KILOBYTE
    }
}
