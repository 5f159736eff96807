package org.mote.demo.data

import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject
import org.mote.engine.ExpertChoices
import org.mote.engine.TokenKind

/**
 * Which expert each layer chose for each token, as it is kept with an answer: [org.mote.engine.ExpertChoices] on disk.
 *
 * @property layers numbers of the decoder's layers with experts.
 * @property texts of the tokens; empty where a token is only a part of a character.
 * @property choices experts by layer index, token and rank; -1: unknown.
 */
class ExpertMap(
    val layers: IntArray,
    val numExperts: Int,
    val topK: Int,
    val texts: List<String>,
    val kinds: List<TokenKind>,
    private val choices: IntArray,
) {
    val tokens: Int get() = texts.size

    fun expert(layerIndex: Int, token: Int, rank: Int = 0): Int = choices[(layerIndex * tokens + token) * topK + rank]

    fun experts(layerIndex: Int, token: Int): List<Int> = (0 until topK).map { expert(layerIndex, token, it) }

    /** The share of all choices of a layer that fell on each expert, 0 to 1. */
    fun load(layerIndex: Int): DoubleArray {
        val counts = IntArray(numExperts)
        for (token in 0 until tokens) {
            for (expert in experts(layerIndex, token)) if (expert >= 0) counts[expert]++
        }
        val sum = counts.sum().coerceAtLeast(1)
        return DoubleArray(numExperts) { counts[it].toDouble() / sum }
    }

    /** Number of this picture token among those of the picture, from 1. */
    fun imageNumber(token: Int): Int = (0..token).count { kinds[it] == TokenKind.IMAGE }

    fun toJson(): String = JSONObject()
        .put("layers", JSONArray(layers.toList()))
        .put("num_experts", numExperts)
        .put("top_k", topK)
        .put("texts", JSONArray(texts))
        .put("kinds", JSONArray(kinds.map { it.ordinal }))
        .put("choices", JSONArray(choices.toList()))
        .toString()

    companion object {
        fun of(experts: ExpertChoices): ExpertMap {
            val tokens = experts.tokens.size
            val choices = IntArray(experts.layers.size * tokens * experts.topK) {
                experts.expert(it / experts.topK / tokens, it / experts.topK % tokens, it % experts.topK)
            }
            val labels = experts.tokens
            return ExpertMap(
                experts.layers,
                experts.numExperts,
                experts.topK,
                labels.map { it.text },
                labels.map { it.kind },
                choices,
            )
        }

        /** Throws [JSONException] for what does not fit together. */
        fun fromJson(text: String): ExpertMap {
            val json = JSONObject(text)
            val map = ExpertMap(
                json.getJSONArray("layers").ints(),
                json.getInt("num_experts"),
                json.getInt("top_k"),
                json.getJSONArray("texts").let { texts -> (0 until texts.length()).map(texts::getString) },
                json.getJSONArray("kinds").ints()
                    .map { TokenKind.entries.getOrNull(it) ?: throw JSONException("kind $it") },
                json.getJSONArray("choices").ints(),
            )
            val fits = map.topK > 0 && map.numExperts > 0 && map.kinds.size == map.tokens &&
                map.choices.size.toLong() == map.layers.size.toLong() * map.tokens * map.topK &&
                map.choices.all { it in -1 until map.numExperts }
            if (!fits) throw JSONException("sizes that do not fit together")
            return map
        }

        private fun JSONArray.ints() = IntArray(length()) { getInt(it) }
    }
}
