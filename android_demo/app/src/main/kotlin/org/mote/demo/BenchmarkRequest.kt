package org.mote.demo

import android.content.Intent
import java.io.File
import java.io.IOException
import org.mote.engine.MoteException
import org.mote.engine.Runtime

/**
 * What a benchmark is asked to do, read from an intent of which nothing is trusted: any app may send one.
 *
 * @property runtime null: the first that the model was exported for.
 * @property threads null: as the runtime chooses.
 * @property image a picture's file; null: a question without one.
 * @property output the files to be written, without their endings.
 */
class BenchmarkRequest private constructor(
    val model: File,
    val runtime: Runtime?,
    val iterations: Int,
    val warmup: Int,
    val maxNewTokens: Int,
    val threads: Int?,
    val prompt: String,
    val image: File?,
    val stopAtEos: Boolean,
    val output: BenchmarkOutput,
) {
    companion object {
        private const val MAX_ITERATIONS = 10_000
        private const val MAX_TOKENS = 1 shl 20
        private const val MAX_THREADS = 1024
        private const val MAX_TEXT = 1 shl 16
        private const val DEFAULT_PROMPT = "Describe the picture."
        private val PLAIN_NAME = Regex("[A-Za-z0-9_][A-Za-z0-9._-]{0,100}")

        /**
         * @param output as [BenchmarkOutput.of] read it from the same intent.
         * @param inside the app's own folder of models.
         * @param outside its folder on the shared storage. Throws [MoteException].
         */
        fun of(intent: Intent, output: BenchmarkOutput, inside: File, outside: File) = BenchmarkRequest(
            model = model(intent.text("model"), inside, outside),
            runtime = intent.text("runtime")?.let(::runtime),
            iterations = intent.number("iterations", 1..MAX_ITERATIONS) ?: 5,
            warmup = intent.number("warmup", 0..MAX_ITERATIONS) ?: 1,
            maxNewTokens = intent.number("max_new_tokens", 1..MAX_TOKENS) ?: 64,
            threads = intent.number("threads", 1..MAX_THREADS),
            prompt = intent.text("prompt") ?: DEFAULT_PROMPT,
            image = intent.text("image")?.let { below(it, listOf(inside, outside), "image") },
            stopAtEos = intent.getBooleanExtra("stop_at_eos", false),
            output = output,
        )

        private fun model(text: String?, inside: File, outside: File): File {
            if (text == null) throw MoteException("the extra model is missing; give a model's name or path")
            val pushed = File(outside, "models")
            if (PLAIN_NAME.matches(text)) {
                return listOf(File(inside, text), File(pushed, text)).firstOrNull { it.isDirectory }
                    ?: throw MoteException("there is no model named $text; push it to $pushed")
            }
            return below(text, listOf(inside, pushed, File(outside, "mote")), "model")
        }

        /** Links are followed before it is compared, so that none leads out. */
        private fun below(path: String, folders: List<File>, what: String): File {
            val file = try {
                File(path).canonicalFile
            } catch (error: IOException) {
                throw MoteException("the extra $what is no path: ${error.message}", error)
            }
            if (folders.any { file.startsWith(it.canonicalFile) && file != it.canonicalFile }) return file
            throw MoteException("the extra $what is $path; expected a place below ${folders.joinToString(" or ")}")
        }

        private fun runtime(id: String): Runtime = Runtime.entries.firstOrNull { it.id == id }
            ?: throw MoteException(
                "the extra runtime is $id; expected ${Runtime.entries.joinToString(" or ") { it.id }}",
            )

        private fun Intent.text(name: String): String? {
            val text = getStringExtra(name)
            if (text == null && hasExtra(name)) throw MoteException("the extra $name is no text; give it with --es")
            if (text != null && text.length > MAX_TEXT) {
                throw MoteException("the extra $name has ${text.length} characters; expected at most $MAX_TEXT")
            }
            return text
        }

        private fun Intent.number(name: String, range: IntRange): Int? {
            if (!hasExtra(name)) return null
            val number = getIntExtra(name, Int.MIN_VALUE)
            // No range begins that low, so this is the answer for an extra of another type.
            if (number == Int.MIN_VALUE) throw MoteException("the extra $name is no integer; give it with --ei")
            if (number !in range) {
                throw MoteException("the extra $name is $number; expected ${range.first} to ${range.last}")
            }
            return number
        }
    }
}

/** Where a benchmark writes: [record] holds what was measured, [status] how far it is. */
class BenchmarkOutput private constructor(base: File) {
    val record = File(base.path + ".json")
    val status = File(base.path + ".status")

    companion object {
        private const val DEFAULT = "benchmark"
        private val NAME = Regex("[A-Za-z0-9_][A-Za-z0-9._-]{0,100}")

        /** Where to say that the intent's own output is not to be used. */
        fun default(outside: File) = BenchmarkOutput(File(outside, "benchmarks/$DEFAULT"))

        /**
         * A bare name is a file in `benchmarks`, which is made; a path is relative to [outside], and its folder must be
         * there. Throws [MoteException].
         */
        fun of(intent: Intent, outside: File): BenchmarkOutput {
            val text = intent.getStringExtra("output") ?: DEFAULT
            val parts = text.split('/')
            if (text.length > 200 || !parts.all(NAME::matches) || ".." in text) {
                throw MoteException(
                    "the extra output is ${text.take(200)}; expected a name, or a path of such below the app's folder",
                )
            }
            if (parts.size == 1) return BenchmarkOutput(File(outside, "benchmarks/$text"))
            val base = File(outside, text)
            val folder = checkNotNull(base.parentFile)
            if (!folder.isDirectory || !folder.canonicalFile.startsWith(outside.canonicalFile)) {
                throw MoteException(
                    "the extra output is $text, but $folder is no folder below the app's own; make it first",
                )
            }
            return BenchmarkOutput(base)
        }
    }
}
