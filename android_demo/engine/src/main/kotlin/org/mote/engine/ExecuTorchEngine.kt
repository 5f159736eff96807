package org.mote.engine

import java.nio.FloatBuffer

/**
 * libmote_executorch_jni.so, which [NativeLibraries.load] has loaded before; mote_executorch_jni.cpp says what each
 * function does.
 */
internal object ExecuTorchJni {
    @JvmStatic
    external fun open(folder: ByteArray, plugin: ByteArray, sizes: IntArray, out: LongArray): ByteArray?

    @JvmStatic
    external fun version(): ByteArray

    @JvmStatic
    external fun encodeImages(handle: Long, pixels: FloatBuffer, count: Int, features: FloatBuffer): ByteArray?

    @JvmStatic
    external fun prefill(
        handle: Long,
        tokenIds: LongArray,
        imageTokenId: Long,
        features: FloatBuffer?,
        logits: FloatBuffer,
    ): ByteArray?

    @JvmStatic
    external fun reset(handle: Long)

    @JvmStatic
    external fun trim(handle: Long)

    @JvmStatic
    external fun close(handle: Long)
}

/** ExecuTorch's threads, which all its models in a process share and which must not change while one of them runs. */
private object SharedThreads {
    private var users = 0
    private var count: Int? = null // null: as many as ExecuTorch likes

    fun acquire(wanted: Int?): Unit = synchronized(this) {
        if (users > 0 && wanted != null && wanted != count) {
            val found = count?.toString() ?: "a number chosen by executorch"
            throw MoteException("threads is $wanted; expected $found, as another model is open: close it first")
        }
        if (wanted != null) count = wanted
        users++
    }

    fun release(): Unit = synchronized(this) { users-- }
}

/**
 * `model.pte` of a folder, mapped; the KV cache is inside the program and starts anew at position 0.
 *
 * ExecuTorch has one thread pool for the whole process: a number of [threads][EngineOptions.threads] is refused while a
 * model with another one is open.
 */
class ExecuTorchEngine(private val manifest: Manifest, libraries: NativeLibraries, threads: Int?) : MoteEngine {
    private val model = manifest.model
    private var handle = 0L
    private var isClosed = false
    private val logits = Buffers.floats(model.vocabSize.toLong())
    private var features = Buffers.floats(0L)

    override val runtime = Runtime.EXECUTORCH
    override val runtimeVersion: String get() = decodeUtf8(ExecuTorchJni.version())

    init {
        SharedThreads.acquire(threads)
        var opened = false
        try {
            open(libraries, threads)
            opened = true
        } finally {
            if (!opened) close()
        }
    }

    private fun open(libraries: NativeLibraries, threads: Int?) {
        libraries.load(NativeLibraries.SUPPORT)
        libraries.load(NativeLibraries.EXECUTORCH)
        val plugin = manifest.pluginLibrary?.let { libraries.path(runtime.plugin) }.orEmpty()
        val image = manifest.image
        val channels = if (image == null) 0 else ImagePreprocessor.CHANNELS
        manifest.path("model.pte")
        val out = LongArray(3)
        check(
            ExecuTorchJni.open(
                manifest.folder.path.toByteArray(),
                plugin.toByteArray(),
                intArrayOf(threads ?: 0, model.contextLength, channels, image?.height ?: 0, image?.width ?: 0),
                out,
            ),
        )
        handle = out[0]
        if (out[1] != model.hiddenSize.toLong() || out[2] != model.vocabSize.toLong()) {
            throw MoteException(
                "model.pte has hidden_size ${out[1]} and vocab_size ${out[2]}, but $MANIFEST_NAME says " +
                    "${model.hiddenSize} and ${model.vocabSize}; export the model again",
            )
        }
    }

    override fun encodeImages(pixelValues: FloatBuffer, count: Int): FloatBuffer {
        val tokens = model.numImageTokens ?: throw MoteException("this export takes no images")
        val size = count.toLong() * tokens * model.hiddenSize
        if (features.capacity().toLong() != size) features = Buffers.floats(size)
        check(ExecuTorchJni.encodeImages(handle, pixelValues, count, features))
        return features
    }

    override fun prefill(tokenIds: LongArray, features: FloatBuffer?): FloatBuffer {
        check(ExecuTorchJni.prefill(handle, tokenIds, model.imageTokenId?.toLong() ?: NO_TOKEN, features, logits))
        return logits
    }

    override fun step(tokenId: Long): FloatBuffer = prefill(longArrayOf(tokenId), null)

    override fun reset() = ExecuTorchJni.reset(handle)

    override fun trimMemory() {
        features = Buffers.floats(0L)
        ExecuTorchJni.trim(handle)
    }

    override fun close() {
        if (isClosed) return
        isClosed = true
        if (handle != 0L) ExecuTorchJni.close(handle)
        handle = 0L
        SharedThreads.release()
    }

    private fun check(error: ByteArray?) {
        if (error != null) throw MoteException(decodeUtf8(error))
    }

    private companion object {
        const val NO_TOKEN = -1L
    }
}
