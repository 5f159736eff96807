package org.mote.engine

import java.nio.FloatBuffer

/**
 * One model in one runtime, with its KV cache and the position in it. Blocking, and for one thread at a time; every
 * method throws [MoteException] where the runtime refuses. Buffers that are returned are direct, in native byte order,
 * and overwritten by the next call.
 */
interface MoteEngine : AutoCloseable {
    val runtime: Runtime
    val runtimeVersion: String

    /**
     * Features float32 `[count * num_image_tokens, hidden_size]` of pictures.
     *
     * @param pixelValues direct, native byte order: float32 `[count, 3, height, width]` as [ImagePreprocessor] makes
     *   them.
     */
    fun encodeImages(pixelValues: FloatBuffer, count: Int): FloatBuffer

    /**
     * Appends tokens to the sequence; logits float32 `[vocab_size]` of its last position, which the caller may change.
     *
     * @param tokenIds at least one; the caller keeps to the vocabulary and to the context length.
     * @param features the rows that the image tokens take, of which there are as many; null without image tokens.
     */
    fun prefill(tokenIds: LongArray, features: FloatBuffer?): FloatBuffer

    /** [prefill] with a single token of the answer. */
    fun step(tokenId: Long): FloatBuffer

    /** Starts a new, empty sequence. */
    fun reset()

    /** Gives memory back to the system that the next call can make anew. The sequence stays as it is. */
    fun trimMemory()

    /** Lets go of the model. Nothing else may be called afterwards; closing again does nothing. */
    override fun close()
}
