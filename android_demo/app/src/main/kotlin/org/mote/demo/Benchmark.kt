package org.mote.demo

import android.content.Intent
import android.util.Log
import java.io.File
import java.io.IOException
import java.util.concurrent.CompletableFuture
import org.mote.demo.data.writeAtomically
import org.mote.engine.Answer
import org.mote.engine.BitmapImages
import org.mote.engine.EngineOptions
import org.mote.engine.GenerationListener
import org.mote.engine.GenerationRequest
import org.mote.engine.MemorySampler
import org.mote.engine.MoteException
import org.mote.engine.MoteSession
import org.mote.engine.ProfileRecord

/**
 * Measures a model as an app runs it, and writes the record that `mote-profile` reads. It belongs to the process, so
 * that it goes on when its screen is rotated. One at a time; the model of the chat is closed meanwhile. For the main
 * thread.
 */
class Benchmark(private val application: DemoApplication) {
    sealed interface State {
        data object Idle : State

        /** @property answered 0 while the model is being opened. */
        class Running(val request: BenchmarkRequest, val answered: Int, val total: Int) : State
        class Done(val request: BenchmarkRequest, val answers: List<Answer>) : State
        class Failed(val sentence: String) : State
    }

    var state: State = State.Idle
        private set(value) {
            field = value
            observers.toList().forEach { it() }
        }
    private val observers = ArrayList<() -> Unit>()

    fun observe(observer: () -> Unit) {
        observers += observer
    }

    fun unobserve(observer: () -> Unit) {
        observers -= observer
    }

    /** Starts what [intent] asks for. What is wrong with it is shown, and written to its status file. */
    fun start(intent: Intent) {
        val outside = application.getExternalFilesDir(null)
        if (outside == null) {
            state = State.Failed("the shared storage is not mounted, so there is no place for the record.")
            return
        }
        var output = BenchmarkOutput.default(outside)
        val request = try {
            output = BenchmarkOutput.of(intent, outside)
            if (state is State.Running) throw MoteException("another benchmark is running; wait for its end")
            BenchmarkRequest.of(intent, output, application.models.inside, outside)
        } catch (error: MoteException) {
            return refuse(output, error.message.orEmpty())
        } catch (error: RuntimeException) { // extras that cannot even be unpacked
            return refuse(output, "the intent cannot be read: ${error.javaClass.simpleName}.")
        }
        state = State.Running(request, 0, request.warmup + request.iterations)
        application.loadedModel.close { run(request) }
    }

    /** A benchmark that runs is not disturbed by one that is refused. */
    private fun refuse(output: BenchmarkOutput, sentence: String) {
        application.io.execute { tell(output, "failed: $sentence") }
        if (state !is State.Running) state = State.Failed(sentence)
    }

    /** On a thread with nothing else in memory. */
    private fun run(request: BenchmarkRequest) {
        val end = try {
            request.output.record.delete()
            tell(request.output, "running")
            val answers = measure(request)
            tell(request.output, "done")
            State.Done(request, answers)
        } catch (error: MoteException) {
            State.Failed(error.message.orEmpty())
        } catch (error: IOException) {
            State.Failed("the record cannot be written: ${error.message}.")
        } catch (_: OutOfMemoryError) {
            State.Failed("there is not enough memory for this benchmark; close other apps, or take fewer iterations.")
        }
        if (end is State.Failed) tell(request.output, "failed: ${end.sentence}")
        application.main.execute { state = end }
    }

    private fun measure(request: BenchmarkRequest): List<Answer> {
        val image = request.image?.let { file -> BitmapImages.decode { file.inputStream() } }
        val exported = MoteSession.exportedRuntimes(request.model)
        val runtime = request.runtime
            ?: exported.firstOrNull { application.libraries.has(it) }
            ?: exported.firstOrNull()
            ?: throw MoteException("${request.model} is no folder written by mote-export; push one")
        return MemorySampler().use { sampler ->
            val options = EngineOptions(request.threads)
            MoteSession.open(request.model, application.libraries, runtime, options).use { session ->
                val question =
                    GenerationRequest(request.prompt, image, request.maxNewTokens, stopAtEos = request.stopAtEos)
                val total = request.warmup + request.iterations
                val answers = ArrayList<Answer>()
                for (number in 1..total) {
                    application.main.execute { state = State.Running(request, number, total) }
                    val answer = ask(session, question)
                    sampler.sample()
                    if (number > request.warmup) answers += answer
                }
                val tool = "mote-android ${application.version}"
                val images = if (image == null) 0 else 1
                val record = ProfileRecord.toJson(session, answers, tool, request.warmup, sampler.samples(), images)
                request.output.record.writeAtomically(record)
                answers
            }
        }
    }

    private fun ask(session: MoteSession, question: GenerationRequest): Answer {
        val end = CompletableFuture<Result<Answer>>()
        session.generate(question, object : GenerationListener {
            override fun onText(piece: String) = Unit

            override fun onFinished(answer: Answer) {
                end.complete(Result.success(answer))
            }

            override fun onFailed(error: MoteException) {
                end.complete(Result.failure(error))
            }
        })
        return end.get().getOrThrow()
    }

    private fun tell(output: BenchmarkOutput, words: String) = try {
        output.status.writeAtomically(words)
    } catch (error: IOException) { // on a full disk whoever waits for it runs into a timeout
        Log.e("mote", "benchmark: $words", error)
        Unit
    }
}
