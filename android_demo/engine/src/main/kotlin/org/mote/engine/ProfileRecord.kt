package org.mote.engine

import org.json.JSONArray
import org.json.JSONObject
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.concurrent.thread
import kotlin.math.roundToLong

/** The record of docs/runner.md, which `mote-profile` reads: `mote_runtime.profile.record.Record`. */
object ProfileRecord {
    private const val FORMAT_VERSION = 1
    private const val UNITS_PER_SECOND = 1000

    /**
     * @param session where [answers] were given, in order; those of the warm-up are left out.
     * @param tool who measured, such as `mote-android 0.1.0`.
     * @param warmup how many answers came before.
     * @param samples memory over time, for instance [Answer.memory] of each answer, or what [MemorySampler] has seen.
     * @param numImages in each question, 0 or 1.
     */
    fun toJson(
        session: MoteSession,
        answers: List<Answer>,
        tool: String,
        warmup: Int,
        samples: List<MemoryUse>,
        numImages: Int,
    ): String = JSONObject()
        .put("format", "mote-profile")
        .put("format_version", FORMAT_VERSION)
        .put("tool", tool)
        .put("runtime", session.runtime.id)
        .put("runtime_version", session.runtimeVersion)
        .put("isa", JSONObject.NULL)
        .put("threads", session.threads ?: JSONObject.NULL)
        .put("cores", JSONObject.NULL)
        .put("warmup", warmup)
        .put("model_load_start_ms", rounded(session.loadStartMs))
        .put("model_load_end_ms", rounded(session.loadEndMs))
        .put("repetitions", JSONArray(answers.map(::repetition)))
        .put("memory", memory(samples))
        .put("monotonic_to_epoch_ms", rounded(Clock.monotonicToEpochMs))
        .put("load_ms", JSONArray())
        .put("num_images", numImages)
        .toString(1)

    private fun repetition(answer: Answer): JSONObject {
        val timings = answer.timings
        return JSONObject()
            .put("inference_start_ms", rounded(timings.inferenceStartMs))
            .put("token_encode_end_ms", rounded(timings.tokenEncodeEndMs))
            .put("image_encode_end_ms", rounded(timings.imageEncodeEndMs))
            .put("prompt_eval_end_ms", rounded(timings.promptEvalEndMs))
            .put("first_token_ms", rounded(timings.firstTokenMs))
            .put("inference_end_ms", rounded(timings.inferenceEndMs))
            .put("aggregate_sampling_time_ms", rounded(timings.aggregateSamplingTimeMs))
            .put("prompt_tokens", timings.promptTokens)
            .put("generated_tokens", timings.generatedTokens)
            .put("decode_steps", timings.decodeSteps)
            .put("prefill_token_per_sec", rounded(timings.prefillTokensPerSecond))
            .put("decode_token_per_sec", rounded(timings.decodeTokensPerSecond))
            .put("token_ids", JSONArray(answer.tokenIds.toList()))
            .put("token_ms", JSONArray(timings.tokenMs.map(::rounded)))
            .put("SCALING_FACTOR_UNITS_PER_SECOND", UNITS_PER_SECOND)
    }

    private fun memory(samples: List<MemoryUse>): JSONObject = JSONObject()
        .put("samples", JSONArray(samples.map { JSONArray(listOf(rounded(it.atMs), it.anonymousBytes, it.fileBytes)) }))
        .put("peak_anonymous_bytes", samples.maxOfOrNull { it.anonymousBytes } ?: 0)
        .put("peak_file_bytes", samples.maxOfOrNull { it.fileBytes } ?: 0)

    /** To the microsecond. */
    private fun rounded(milliseconds: Double): Double = (milliseconds * 1e3).roundToLong() / 1e3
}

/** Samples this process's memory every 10 ms on a thread of its own until it is closed. */
class MemorySampler : AutoCloseable {
    private val samples = ArrayList<MemoryUse>() // guarded by itself
    private val ended = CountDownLatch(1)
    private val sampler = thread(name = "mote-memory", isDaemon = true) {
        do sample() while (!ended.await(INTERVAL_MS, TimeUnit.MILLISECONDS))
    }

    /** Takes a sample now, as at the end of a stage. */
    fun sample() {
        synchronized(samples) { samples += MemoryUse.now() } // the clock within, so that samples are in order
    }

    /** What was seen so far. */
    fun samples(): List<MemoryUse> = synchronized(samples) { samples.toList() }

    override fun close() {
        ended.countDown()
        sampler.join()
    }

    private companion object {
        const val INTERVAL_MS = 10L
    }
}
