package org.mote.engine

import java.io.File
import java.nio.FloatBuffer
import java.util.concurrent.CountDownLatch
import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit

/**
 * A loaded model with its tokenizer and a thread of its own, on which everything runs that takes time. All of it may be
 * used from any thread.
 *
 * @property threads of the runtime, as asked for; null: the runtime's own choice.
 * @property loadStartMs as in [Timings].
 * @property loadEndMs as in [Timings].
 */
class MoteSession private constructor(
    val manifest: Manifest,
    private val tokenizer: PromptTokenizer,
    private val engine: MoteEngine,
    private val pluginPath: String?,
    val threads: Int?,
    val loadStartMs: Double,
    val loadEndMs: Double,
) : AutoCloseable {
    val runtime: Runtime = engine.runtime
    val runtimeVersion: String = engine.runtimeVersion
    val loadMs: Double get() = loadEndMs - loadStartMs
    val takesImages: Boolean get() = manifest.image != null

    private lateinit var thread: Thread
    private val executor = Executors.newSingleThreadExecutor { work ->
        Thread(work, "mote-session").also { thread = it }
    }
    private val lock = Any()
    private var running: RunningGeneration? = null // guarded by lock
    private var isClosed = false // guarded by lock

    // Only the session's thread touches these.
    private val preprocessor = manifest.image?.let(::ImagePreprocessor)
    private var pixelValues: FloatBuffer? = null
    private var memory = MemoryUse.now()

    /**
     * Starts an answer and returns at once. One at a time: throws [IllegalStateException] while another one runs or
     * after [close]. From [GenerationListener.onFinished] and [GenerationListener.onFailed] on, the next one may be
     * asked for.
     */
    fun generate(request: GenerationRequest, listener: GenerationListener): Generation = synchronized(lock) {
        check(!isClosed) { "the session is closed" }
        check(running == null) { "an answer is running; cancel it and wait for its end" }
        RunningGeneration(request, listener).also { generation ->
            running = generation
            executor.execute { generation.run() }
        }
    }

    /**
     * Gives back memory that can be made anew, after the answer that may be running; from `onTrimMemory`, safe at any
     * time. Returns at once.
     */
    fun trimMemory(): Unit = synchronized(lock) {
        if (isClosed) return
        executor.execute {
            engine.reset()
            engine.trimMemory()
            pixelValues = null
        }
    }

    /**
     * Cancels what is running, waits for its end (one step of the model at most) and releases the model, once. Any
     * number of times; from a listener it does not wait for the answer that it is told of.
     */
    override fun close() {
        synchronized(lock) {
            if (!isClosed) {
                isClosed = true
                running?.cancel()
                executor.execute { engine.close() }
                executor.shutdown()
            }
        }
        if (Thread.currentThread() !== thread) awaitEnd()
    }

    private fun awaitEnd() {
        var interrupted = false
        while (true) {
            try {
                if (executor.awaitTermination(Long.MAX_VALUE, TimeUnit.NANOSECONDS)) break
            } catch (_: InterruptedException) {
                interrupted = true
            }
        }
        if (interrupted) Thread.currentThread().interrupt()
    }

    private inner class RunningGeneration(
        private val request: GenerationRequest,
        private val listener: GenerationListener,
    ) : Generation {
        @Volatile
        private var isCancelled = false

        @Volatile
        override var isRunning = true
            private set
        private val ended = CountDownLatch(1)

        override fun cancel() {
            isCancelled = true
        }

        override fun await(timeoutMs: Long): Boolean = ended.await(timeoutMs, TimeUnit.MILLISECONDS)

        fun run() {
            val outcome = runCatching { answer() }
            synchronized(lock) { running = null }
            isRunning = false
            try {
                outcome.fold(listener::onFinished) { listener.onFailed(asMoteException(it)) }
            } catch (bug: Throwable) { // of the listener, who has nobody else to hear of it
                Thread.currentThread().run { uncaughtExceptionHandler.uncaughtException(this, bug) }
            } finally {
                ended.countDown()
            }
        }

        private fun answer(): Answer {
            val marks = Marks()
            val sampler = Sampler(request.temperature, request.topP, request.seed)
            if (request.maxNewTokens < 1) {
                throw MoteException("max_new_tokens is ${request.maxNewTokens}; expected at least 1")
            }
            val prompt = tokenizer.encodePrompt(request.prompt, if (request.image == null) 0 else 1)
            marks.tokenEncodeEndMs = Clock.nowMs()
            marks.promptTokens = prompt.ids.size
            checkLength(prompt)
            engine.reset()
            val recorder = pluginPath?.takeIf { request.recordExperts }?.let { ExpertRecorder.attach(it, manifest.moe) }
            recorder.use {
                val ids = ArrayList<Int>()
                val loop = tokenLoop(prompt, sampler, marks, recorder)
                val text = stream(loop, ids)
                memory = MemoryUse.now().withPeaksOf(memory)
                return Answer(
                    text,
                    LongArray(ids.size) { ids[it].toLong() },
                    checkNotNull(loop.finishReason),
                    marks.toTimings(),
                    memory,
                    recorder?.choices(labels(prompt, ids)),
                )
            }
        }

        private fun checkLength(prompt: EncodedPrompt) {
            if (prompt.ids.isEmpty()) throw MoteException("the prompt has no tokens; expected at least 1")
            if (prompt.ids.size <= manifest.contextLength) return
            val pads = prompt.kinds.count { it == TokenKind.IMAGE }
            val images = if (pads > 0) " ($pads of them for the picture)" else ""
            throw MoteException(
                "the prompt is ${prompt.ids.size} tokens long$images, but the model's context holds " +
                    "${manifest.contextLength}; shorten the prompt",
            )
        }

        private fun tokenLoop(
            prompt: EncodedPrompt,
            sampler: Sampler,
            marks: Marks,
            recorder: ExpertRecorder?,
        ): TokenLoop {
            val model = manifest.model
            fun <T> recorded(tokens: Int, run: () -> T): T = recorder?.record(tokens, run) ?: run()
            return TokenLoop(
                prefill = {
                    val features = request.image?.let(::features)
                    marks.imageEncodeEndMs = Clock.nowMs()
                    memory = MemoryUse.now().withPeaksOf(memory)
                    recorded(prompt.ids.size) { engine.prefill(prompt.ids, features) }
                },
                step = { id -> recorded(1) { engine.step(id.toLong()) } },
                sampler,
                Limits(
                    if (request.stopAtEos) model.eosTokenIds else emptySet(),
                    model.imageTokenId,
                    request.maxNewTokens,
                    model.contextLength,
                ),
                marks,
            ) { isCancelled }
        }

        private fun features(image: RgbImage): FloatBuffer {
            val spec = checkNotNull(manifest.image)
            val size = ImagePreprocessor.CHANNELS.toLong() * spec.height * spec.width
            val pixels = pixelValues ?: Buffers.floats(size).also { pixelValues = it }
            checkNotNull(preprocessor).preprocess(image, pixels.duplicate())
            return engine.encodeImages(pixels, 1)
        }

        private fun stream(loop: TokenLoop, ids: MutableList<Int>): String {
            val text = StringBuilder()
            val decoder = tokenizer.stream()
            fun tell(piece: String) {
                if (piece.isEmpty()) return
                text.append(piece)
                listener.onText(piece)
            }
            while (true) {
                val id = loop.next() ?: break
                ids += id
                tell(decoder.push(id))
            }
            tell(decoder.flush())
            return text.toString()
        }

        private fun labels(prompt: EncodedPrompt, answer: List<Int>): List<TokenLabel> =
            prompt.ids.mapIndexed { index, id -> TokenLabel(tokenizer.label(id.toInt()), prompt.kinds[index]) } +
                answer.map { TokenLabel(tokenizer.label(it), TokenKind.ANSWER) }
    }

    companion object {
        private const val MAX_THREADS = 1024

        /**
         * Opens a folder written by `mote-export`, or its subfolder for [runtime]. Blocking, for seconds where a large
         * model is verified: call it off the main thread. Throws [MoteException].
         */
        fun open(
            folder: File,
            libraries: NativeLibraries,
            runtime: Runtime,
            options: EngineOptions = EngineOptions(),
        ): MoteSession = try {
            openExport(folder, libraries, runtime, options)
        } catch (error: OutOfMemoryError) {
            throw asMoteException(error)
        }

        private fun openExport(
            folder: File,
            libraries: NativeLibraries,
            runtime: Runtime,
            options: EngineOptions,
        ): MoteSession {
            val threads = options.threads
            if (threads != null && threads !in 1..MAX_THREADS) {
                throw MoteException("threads is $threads; expected 1 to $MAX_THREADS")
            }
            val start = Clock.nowMs()
            val manifest = Manifest.read(findExport(folder, runtime))
            if (manifest.runtime != runtime) {
                val found = "was exported for ${manifest.runtime.id}, not for ${runtime.id}"
                throw MoteException("${manifest.folder} $found; export it for ${runtime.id}")
            }
            manifest.verify(options.verify)
            val tokenizer = PromptTokenizer(manifest.path("tokenizer.json"), manifest.model, manifest.prompt)
            val engine = when (runtime) {
                Runtime.ONNX_RUNTIME -> OrtEngine(manifest, libraries, threads)
                Runtime.EXECUTORCH -> ExecuTorchEngine(manifest, libraries, threads)
            }
            val pluginPath = manifest.pluginLibrary?.let { libraries.path(runtime.plugin) }
            return MoteSession(manifest, tokenizer, engine, pluginPath, threads, start, Clock.nowMs())
        }

        /** Runtimes for which [folder] holds an export, in order of preference; empty if it is no export. */
        fun exportedRuntimes(folder: File): List<Runtime> {
            if (!File(folder, MANIFEST_NAME).exists()) {
                return Runtime.entries.filter { File(File(folder, it.subfolder), MANIFEST_NAME).isFile }
            }
            return try {
                listOf(Manifest.read(folder).runtime)
            } catch (_: MoteException) {
                emptyList() // opening it says what is wrong
            }
        }

        private fun findExport(folder: File, runtime: Runtime): File {
            if (File(folder, MANIFEST_NAME).exists()) return folder
            val exported = exportedRuntimes(folder)
            if (exported.isEmpty()) return folder // reading its manifest will say what is wrong
            if (runtime in exported) return File(folder, runtime.subfolder)
            throw MoteException(
                "$folder holds an export for ${exported.joinToString(" and ") { it.id }}, none for ${runtime.id}; " +
                    "export it with --target all",
            )
        }
    }
}

/** What went wrong as a sentence for the user; what nobody foresaw keeps its cause for the developer. */
private fun asMoteException(error: Throwable): MoteException = when (error) {
    is MoteException -> error
    is OutOfMemoryError ->
        MoteException("there is not enough memory; close other apps, or take a smaller model or picture", error)
    else -> MoteException("the engine failed, which is a bug: ${reason(error)}", error)
}
