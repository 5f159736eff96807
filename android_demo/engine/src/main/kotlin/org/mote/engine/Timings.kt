package org.mote.engine

/**
 * When things happened in one answer, in milliseconds since the epoch, monotonic within the process: the definitions of
 * `mote_runtime.generation.Timings`, whose names are those of ExecuTorch's LLM stats.
 *
 * @property inferenceStartMs the request is taken up.
 * @property tokenEncodeEndMs the prompt is token ids.
 * @property imageEncodeEndMs the picture is features; without one, when it would have been.
 * @property promptEvalEndMs the decoder has run over the prompt.
 * @property firstTokenMs the first token is chosen; 0 for an empty answer.
 * @property inferenceEndMs the answer is complete.
 * @property aggregateSamplingTimeMs choosing tokens, a duration.
 * @property promptTokens with those of the picture.
 * @property generatedTokens without the end-of-sequence token.
 * @property decodeSteps the passes after the prompt, which [decodeTokensPerSecond] counts.
 * @property tokenMs when each generated token was known.
 */
class Timings(
    val inferenceStartMs: Double,
    val tokenEncodeEndMs: Double,
    val imageEncodeEndMs: Double,
    val promptEvalEndMs: Double,
    val firstTokenMs: Double,
    val inferenceEndMs: Double,
    val aggregateSamplingTimeMs: Double,
    val promptTokens: Int,
    val generatedTokens: Int,
    val decodeSteps: Int,
    val tokenMs: DoubleArray,
) {
    /** From the prompt's ids to the picture's features, with its preprocessing; 0 for an answer that ended before. */
    val imageEncodeMs: Double get() = maxOf(0.0, imageEncodeEndMs - tokenEncodeEndMs)

    /** From the request to the first token; 0 for an empty answer. */
    val timeToFirstTokenMs: Double get() = if (generatedTokens > 0) firstTokenMs - inferenceStartMs else 0.0

    /** Tokens of the prompt per second from the request to the end of its evaluation. */
    val prefillTokensPerSecond: Double get() = rate(promptTokens, promptEvalEndMs - inferenceStartMs)

    /** Steps per second after the prompt. */
    val decodeTokensPerSecond: Double get() = rate(decodeSteps, inferenceEndMs - promptEvalEndMs)

    private fun rate(count: Int, milliseconds: Double) = if (milliseconds > 0) count * 1e3 / milliseconds else 0.0
}

/** The clock of all marks: milliseconds since the epoch, monotonic within the process. */
object Clock {
    private val epochMinusMonotonicNs = System.currentTimeMillis() * 1_000_000L - System.nanoTime()

    fun nowMs(): Double = (epochMinusMonotonicNs + System.nanoTime()) / 1e6

    /** The epoch's milliseconds minus those of the monotonic clock of [System.nanoTime]. */
    val monotonicToEpochMs: Double get() = epochMinusMonotonicNs / 1e6
}
