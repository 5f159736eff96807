package org.mote.engine

/** The record of docs/runner.md, which `mote-profile` reads. */
object ProfileRecord {
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
    ): String = TODO()
}

/** Samples this process's memory every 10 ms on a thread of its own until it is closed. */
class MemorySampler : AutoCloseable {
    /** What was seen so far. */
    fun samples(): List<MemoryUse> = TODO()

    override fun close(): Unit = TODO()
}
