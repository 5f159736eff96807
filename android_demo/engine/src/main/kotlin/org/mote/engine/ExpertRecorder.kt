package org.mote.engine

import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * Which experts a model chooses, by the recording of the plugin that its runtime has loaded (mote/trace.h).
 *
 * Each forward pass is a recording of its own, so that memory is bounded by the longest one. The plugin records for the
 * whole process: where another session computes at the same time, what a pass chose may be unknown.
 */
internal class ExpertRecorder private constructor(private val plugin: Long, private val moe: MoeSpec) : AutoCloseable {
    private val passes = ArrayList<Pass>()
    private val scratch = ByteBuffer.allocateDirect(SCRATCH_RECORDS * RECORD_BYTES).order(ByteOrder.nativeOrder())

    /** What was chosen in one pass: `[layers][tokens][topK]`. */
    private class Pass(val tokens: Int, val choices: ShortArray)

    /** Records what [run] computes, one forward pass over [tokens] tokens. */
    fun <T> record(tokens: Int, run: () -> T): T = synchronized(lock) {
        val started = MoteJni.startRecording(plugin, MAX_EVENTS)
        val events: Long
        try {
            return run()
        } finally {
            events = if (started) MoteJni.stopRecording(plugin) else -1
            passes += Pass(tokens, if (events < 0) unknown(moe, tokens) else choicesOf(moe, read(events), tokens))
        }
    }

    private fun read(events: Long): List<Record> {
        val records = ArrayList<Record>()
        for (first in 0 until events step SCRATCH_RECORDS.toLong()) {
            repeat(MoteJni.readRoutes(plugin, first, scratch)) {
                val at = it * RECORD_BYTES
                records += Record(
                    layer = scratch.getLong(at),
                    call = scratch.getInt(at + 8),
                    token = scratch.getInt(at + 12),
                    rank = scratch.getInt(at + 16),
                    expert = scratch.getInt(at + 20),
                )
            }
        }
        return records
    }

    /** All passes since the beginning, for these tokens of prompt and answer. */
    fun choices(tokens: List<TokenLabel>): ExpertChoices {
        val topK = moe.topK
        val choices = ShortArray(moe.layers.size * tokens.size * topK) { UNKNOWN }
        var first = 0
        for (pass in passes) {
            val count = minOf(pass.tokens, tokens.size - first)
            for (layer in moe.layers.indices) {
                val from = layer * pass.tokens * topK
                pass.choices.copyInto(choices, (layer * tokens.size + first) * topK, from, from + count * topK)
            }
            first += count
        }
        return ExpertChoices(moe.layers.sortedArray(), moe.numExperts, topK, tokens, choices)
    }

    override fun close(): Unit = synchronized(lock) { MoteJni.closePlugin(plugin) }

    /** One line of the recording; [rank] is [WHOLE_CALL] where it says that the call had [token] tokens. */
    internal class Record(val layer: Long, val call: Int, val token: Int, val rank: Int, val expert: Int)

    companion object {
        private const val MAX_EVENTS = 1L shl 20 // 64 MiB, touched as events arrive
        private const val RECORD_BYTES = 24
        private const val SCRATCH_RECORDS = 1 shl 12
        internal const val WHOLE_CALL = -1
        private const val UNKNOWN: Short = -1
        private val lock = Any() // one recording at a time

        /** Null where the plugin is not loaded or does not record choices. */
        fun attach(pluginPath: String, moe: MoeSpec): ExpertRecorder? =
            MoteJni.openPlugin(pluginPath.toByteArray()).takeIf { it != 0L }?.let { ExpertRecorder(it, moe) }

        private fun unknown(moe: MoeSpec, tokens: Int) = ShortArray(moe.layers.size * tokens * moe.topK) { UNKNOWN }

        /**
         * The choices `[layers][tokens][topK]` of one pass. Layers run one after the other, each in one call or, where
         * the runtime cut a prompt, in one call for each piece, whose tokens count on from those of the piece before.
         */
        internal fun choicesOf(moe: MoeSpec, records: List<Record>, tokens: Int): ShortArray {
            val choices = unknown(moe, tokens)
            val layers = records.groupBy { it.layer }.values.filter { layer -> layer.any { it.rank != WHOLE_CALL } }
            if (layers.size != moe.layers.size) return choices
            layers.sortedBy { layer -> layer.minOf { it.call } }.forEachIndexed { index, layer ->
                var first = 0
                for (call in layer.groupBy { it.call }.toSortedMap().values) {
                    val (whole, routes) = call.partition { it.rank == WHOLE_CALL }
                    for (route in routes) {
                        val token = first + route.token
                        val isOurs = route.rank in 0 until moe.topK && route.expert in 0 until moe.numExperts
                        if (isOurs && token in 0 until tokens) {
                            choices[(index * tokens + token) * moe.topK + route.rank] = route.expert.toShort()
                        }
                    }
                    first += whole.sumOf { it.token }
                }
            }
            return choices
        }
    }
}
