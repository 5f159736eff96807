package org.mote.engine

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.LongBuffer

/** Direct buffers in native byte order, which runtimes read without a copy. */
internal object Buffers {
    fun floats(count: Long): FloatBuffer = bytes(count, Float.SIZE_BYTES).asFloatBuffer()

    fun longs(count: Long): LongBuffer = bytes(count, Long.SIZE_BYTES).asLongBuffer()

    private fun bytes(count: Long, size: Int): ByteBuffer {
        val bytes = count * size
        if (bytes > Int.MAX_VALUE) throw MoteException("$bytes bytes are more than one buffer can hold")
        return ByteBuffer.allocateDirect(bytes.toInt()).order(ByteOrder.nativeOrder())
    }
}

/**
 * Memory outside of the Java heap, made once and released once. For what is large: on Android a direct [ByteBuffer]
 * lies on the Java heap, whose limit has nothing to do with the device's memory, and is filled with zeros at once; this
 * takes no room before it is written to.
 */
internal class NativeMemory private constructor(private var buffer: ByteBuffer?) : AutoCloseable {
    val bytes: ByteBuffer get() = checkNotNull(buffer).order(ByteOrder.nativeOrder())

    /** Gives the pages back; they read as zeros afterwards. */
    fun discard() = MoteJni.discard(checkNotNull(buffer))

    override fun close() {
        buffer?.let(MoteJni::release)
        buffer = null
    }

    companion object {
        /** Null where the system has not so much memory, or it is more than one buffer can hold (2 GiB). */
        fun allocate(bytes: Long): NativeMemory? = MoteJni.allocate(bytes)?.let(::NativeMemory)
    }
}
