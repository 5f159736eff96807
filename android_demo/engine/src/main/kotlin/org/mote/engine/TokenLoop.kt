package org.mote.engine

import java.nio.FloatBuffer

/** When a token loop ends, and the token it never chooses: the place of an image, which no answer can fill. */
internal class Limits(
    val eosTokenIds: Set<Int>,
    val imageTokenId: Int?,
    val maxNewTokens: Int,
    val contextLength: Int,
)

/** The marks of an answer in the making, see [Timings]. */
internal class Marks(private val inferenceStartMs: Double = Clock.nowMs()) {
    var tokenEncodeEndMs = 0.0
    var imageEncodeEndMs = 0.0
    var promptEvalEndMs = 0.0
    var firstTokenMs = 0.0
    var inferenceEndMs = 0.0
    var aggregateSamplingTimeMs = 0.0
    var promptTokens = 0
    var decodeSteps = 0
    val tokenMs = ArrayList<Double>()

    /** An answer that was cancelled early has not reached all marks; those missing are where it ended. */
    fun toTimings() = Timings(
        inferenceStartMs,
        tokenEncodeEndMs.orEnd(),
        imageEncodeEndMs.orEnd(),
        promptEvalEndMs.orEnd(),
        firstTokenMs,
        inferenceEndMs,
        aggregateSamplingTimeMs,
        promptTokens,
        tokenMs.size,
        decodeSteps,
        tokenMs.toDoubleArray(),
    )

    private fun Double.orEnd() = if (this == 0.0) inferenceEndMs else this
}

/**
 * The ids of one answer as they are computed: sample, hand out, feed back, until one of the limits is reached; the
 * rules of `mote_runtime.generation.TokenLoop`.
 *
 * @property prefill runs the model over the prompt; logits `[vocab_size]`, which are changed here.
 * @property step runs it over one token of the answer.
 */
internal class TokenLoop(
    private val prefill: () -> FloatBuffer,
    private val step: (Int) -> FloatBuffer,
    private val sampler: Sampler,
    private val limits: Limits,
    private val marks: Marks,
    private val isCancelled: () -> Boolean,
) {
    /** Null while the loop runs. */
    var finishReason: FinishReason? = null
        private set
    private var last: Int? = null

    /** The next id, or null at the end of the answer. */
    fun next(): Int? {
        reasonToEnd()?.let { return finish(it) }
        val logits = nextLogits()
        val before = Clock.nowMs()
        limits.imageTokenId?.let { logits.put(it, Float.NEGATIVE_INFINITY) }
        val id = sampler.choose(logits)
        val known = Clock.nowMs()
        marks.aggregateSamplingTimeMs += known - before
        if (id in limits.eosTokenIds) return finish(FinishReason.STOP)
        if (last == null) marks.firstTokenMs = known
        marks.tokenMs += known
        last = id
        return id
    }

    private fun reasonToEnd(): FinishReason? = when {
        finishReason != null -> finishReason
        isCancelled() -> FinishReason.CANCELLED
        marks.tokenMs.size == limits.maxNewTokens -> FinishReason.LENGTH
        // The token handed out last is not in the cache yet; it needs a place there.
        marks.promptTokens + marks.tokenMs.size > limits.contextLength -> FinishReason.CONTEXT
        else -> null
    }

    private fun nextLogits(): FloatBuffer {
        val token = last ?: return prefill().also { marks.promptEvalEndMs = Clock.nowMs() }
        marks.decodeSteps++
        return step(token)
    }

    private fun finish(reason: FinishReason): Int? {
        if (finishReason == null) {
            finishReason = reason
            marks.inferenceEndMs = Clock.nowMs()
        }
        return null
    }
}
