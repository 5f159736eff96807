package org.mote.engine

import java.io.File

/**
 * A loaded model with its tokenizer and a thread of its own.
 */
class MoteSession private constructor(
    val manifest: Manifest,
    val runtime: Runtime,
    val runtimeVersion: String,
    /** Number of threads that was asked for; null: the runtime's own choice. */
    val threads: Int?,
    val loadStartMs: Double,
    val loadEndMs: Double,
) : AutoCloseable {
    val loadMs: Double get() = loadEndMs - loadStartMs
    val takesImages: Boolean get() = manifest.image != null

    /**
     * Starts an answer and returns at once. One at a time: throws [IllegalStateException] while another one runs or after
     * [close].
     */
    fun generate(request: GenerationRequest, listener: GenerationListener): Generation = TODO()

    /** Gives back memory that can be made anew; from `onTrimMemory`, safe at any time and from any thread. Returns at once. */
    fun trimMemory(): Unit = TODO()

    /** From any thread, any number of times: cancels, waits, and releases the model exactly once. */
    override fun close(): Unit = TODO()

    companion object {
        /**
         * Opens a folder written by `mote-export`, or its subfolder for [runtime]. Blocking, for seconds where a large model
         * is verified: call it off the main thread. Throws [MoteException].
         */
        fun open(
            folder: File,
            libraries: NativeLibraries,
            runtime: Runtime,
            options: EngineOptions = EngineOptions(),
        ): MoteSession = TODO()

        /** Runtimes for which [folder] holds an export, in order of preference; empty if it is no export. */
        fun exportedRuntimes(folder: File): List<Runtime> = TODO()
    }
}
