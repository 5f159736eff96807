package org.mote.engine

import java.nio.ByteBuffer

/**
 * libmote_jni.so, which [NativeLibraries.load] has loaded before; mote_jni.cpp says what each function does. Texts are
 * UTF-8.
 */
internal object MoteJni {
    @JvmStatic
    external fun allocate(bytes: Long): ByteBuffer?

    @JvmStatic
    external fun discard(buffer: ByteBuffer)

    @JvmStatic
    external fun release(buffer: ByteBuffer)

    @JvmStatic
    external fun openPlugin(path: ByteArray): Long

    @JvmStatic
    external fun closePlugin(library: Long)

    @JvmStatic
    external fun startRecording(library: Long, capacity: Long): Boolean

    @JvmStatic
    external fun stopRecording(library: Long): Long

    @JvmStatic
    external fun readRoutes(library: Long, first: Long, out: ByteBuffer): Int
}
