package org.mote.engine

/** Where a token comes from. */
enum class TokenKind { TEMPLATE, IMAGE, PROMPT, ANSWER }

/** One token of the prompt or the answer; [text] is empty where it is only a part of a character. */
class TokenLabel(val text: String, val kind: TokenKind)

/**
 * Which experts each MoE layer chose for each token of prompt and answer.
 *
 * @property layers numbers of the decoder's layers that have experts, ascending; a "layer index" below is an index
 *   here.
 * @property topK experts chosen for a token.
 * @property tokens of the prompt, then of the answer. The last token of an answer was never fed to the model, unless it
 *   ended in a later one, so its experts may be unknown.
 */
class ExpertChoices internal constructor(
    val layers: IntArray,
    val numExperts: Int,
    val topK: Int,
    val tokens: List<TokenLabel>,
    private val choices: ShortArray,
) {
    init {
        require(choices.size == layers.size * tokens.size * topK)
    }

    /**
     * The expert that layer number [layerIndex] of [layers] chose for a token; [rank] 0 is its first choice. -1:
     * unknown.
     */
    fun expert(layerIndex: Int, token: Int, rank: Int = 0): Int {
        require(layerIndex in layers.indices && token in tokens.indices && rank in 0 until topK)
        return choices[(layerIndex * tokens.size + token) * topK + rank].toInt()
    }

    /** For each expert of a layer, how many tokens it was chosen for. */
    fun load(layerIndex: Int): IntArray {
        val counts = IntArray(numExperts)
        for (token in tokens.indices) {
            for (rank in 0 until topK) {
                val expert = expert(layerIndex, token, rank)
                if (expert >= 0) counts[expert]++
            }
        }
        return counts
    }
}
