package org.mote.engine

/**
 * One question.
 *
 * @property prompt the user's text, without a template; special tokens spelled out in it are plain text.
 * @property image the picture that is asked about.
 * @property maxNewTokens the answer's greatest length, at least 1.
 * @property temperature 0 takes the likeliest token each time.
 * @property topP above temperature 0: draws from the likeliest tokens of this total only.
 * @property seed above temperature 0: repeats a draw.
 * @property recordExperts fills [Answer.experts].
 * @property stopAtEos false takes an end-of-sequence token as any other, so that each answer has the same length.
 */
class GenerationRequest(
    val prompt: String,
    val image: RgbImage? = null,
    val maxNewTokens: Int = 128,
    val temperature: Double = 0.0,
    val topP: Double = 1.0,
    val seed: Long = 0,
    val recordExperts: Boolean = false,
    val stopAtEos: Boolean = true,
)

/**
 * Hears of one answer. Every method is called on the session's thread and must not block it for long; exactly one of
 * [onFinished] and [onFailed] is called, last. What a listener throws ends its answer, and is handed to the thread's
 * uncaught exception handler, as it is a bug of the listener.
 */
interface GenerationListener {
    /** The next piece of text, of whole characters only. */
    fun onText(piece: String)

    /** The answer is complete or was cancelled ([FinishReason.CANCELLED]). */
    fun onFinished(answer: Answer)

    /** There is no answer, or none further; the session can still be asked again. */
    fun onFailed(error: MoteException)
}

/** A running answer. All of it may be used from any thread. */
interface Generation {
    /** Whether the listener has not heard the end yet. */
    val isRunning: Boolean

    /** Asks for the end, which comes within one step of the model; returns at once. */
    fun cancel()

    /** Waits until the listener has heard the end, at most [timeoutMs]; whether it has. */
    fun await(timeoutMs: Long): Boolean
}

/** Why an answer ended: an end-of-sequence token, `maxNewTokens`, a full context, or [Generation.cancel]. */
enum class FinishReason { STOP, LENGTH, CONTEXT, CANCELLED }

/**
 * A finished answer.
 *
 * @property text without special tokens.
 * @property tokenIds without the end-of-sequence token.
 * @property memory of this process, at the end of the answer.
 * @property experts null unless [GenerationRequest.recordExperts] was set and the plugin can record.
 */
class Answer(
    val text: String,
    val tokenIds: LongArray,
    val finishReason: FinishReason,
    val timings: Timings,
    val memory: MemoryUse,
    val experts: ExpertChoices?,
)
