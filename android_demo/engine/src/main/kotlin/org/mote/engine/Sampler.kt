package org.mote.engine

import java.nio.FloatBuffer
import java.util.SplittableRandom
import kotlin.math.exp

/**
 * Chooses the next token: greedy at temperature 0, otherwise random by the softmax of `logits / temperature` cut to its
 * nucleus (top-p sampling: Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1). The same seed
 * gives the same choices for the same logits; they are not those of Python, whose generator is another.
 *
 * Throws [MoteException] where a setting is out of range or would have no effect.
 */
class Sampler(private val temperature: Double = 0.0, private val topP: Double = 1.0, seed: Long = 0) {
    init {
        if (seed < 0) throw MoteException("seed is $seed; expected an integer of at least 0")
        if (!(temperature.isFinite() && temperature >= 0)) {
            throw MoteException("temperature is $temperature; expected a finite number of at least 0")
        }
        if (!(topP > 0 && topP <= 1)) throw MoteException("top_p is $topP; expected a number above 0 and at most 1")
        if (temperature == 0.0 && topP != 1.0) {
            throw MoteException("top_p $topP has no effect at temperature 0; set a temperature above 0 or leave it out")
        }
    }

    /** Numbers from 0 to below 1. */
    internal var random: () -> Double = SplittableRandom(seed)::nextDouble
    private var weights = DoubleArray(0)

    /**
     * The id of the next token for [logits] float32 `[vocab_size]`; of equal logits greedy takes the lowest id.
     * Throws [MoteException] where the greatest is not finite, as then no choice means anything.
     */
    fun choose(logits: FloatBuffer): Int {
        val best = greatest(logits)
        return if (temperature == 0.0) best else draw(logits, logits[best])
    }

    private fun greatest(logits: FloatBuffer): Int {
        var best = 0
        for (id in 0 until logits.capacity()) {
            val logit = logits[id]
            if (logit > logits[best]) best = id
            if (logit.isNaN()) throw damaged(logit)
        }
        return if (logits[best].isFinite()) best else throw damaged(logits[best])
    }

    private fun damaged(logit: Float) =
        MoteException("the model's greatest logit is $logit; expected a finite number: its weights are damaged")

    private fun draw(logits: FloatBuffer, peak: Float): Int {
        val size = logits.capacity()
        if (weights.size != size) weights = DoubleArray(size)
        for (id in 0 until size) weights[id] = exp((logits[id].toDouble() - peak) / temperature)
        val total = weights.sum()
        if (topP == 1.0) return pick(size, total) { it }
        // All tokens below this bound weigh less than 1 - top_p together, so none is in the nucleus.
        val bound = (1 - topP) * total / size
        val candidates = (0 until size).filter { weights[it] >= bound }.sortedByDescending { weights[it] }
        var count = 0
        var mass = 0.0
        while (count < candidates.size && mass < topP * total) mass += weights[candidates[count++]]
        return pick(count, mass) { candidates[it] }
    }

    /** One of [count] candidates, each as often as its share of [total] says. */
    private inline fun pick(count: Int, total: Double, candidate: (Int) -> Int): Int {
        val drawn = random() * total
        var sum = 0.0
        for (index in 0 until count) {
            sum += weights[candidate(index)]
            if (sum > drawn) return candidate(index)
        }
        return candidate(count - 1)
    }
}
