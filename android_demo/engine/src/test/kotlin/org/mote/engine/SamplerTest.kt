package org.mote.engine

import java.nio.FloatBuffer
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotEquals
import org.junit.Assert.assertTrue
import org.junit.Test

/** Equal to mote_runtime.sampling for the same numbers drawn. */
class SamplerTest {
    private fun logits(seed: Int): FloatBuffer =
        FloatBuffer.wrap(TestData.noise(200, seed).map { ((it.toInt() and 0xff) - 128f) / 16f }.toFloatArray())

    @Test
    fun theSameDrawsGiveTheSameTokens() {
        for (case in TestData.goldenJson("sampling.json").asList().map { it.asMap() }) {
            val sampler = Sampler(case["temperature"] as Double, case["top_p"] as Double)
            val logits = logits((case["seed"] as Long).toInt())
            val chosen = case["draws"].asList().map { drawn ->
                sampler.random = { drawn as Double }
                sampler.choose(logits)
            }
            assertEquals("$case", case["chosen"].asInts(), chosen)
        }
    }

    @Test
    fun theSameSeedGivesTheSameChoices() {
        fun chosen(seed: Long) = Sampler(2.0, 0.9, seed).let { sampler -> List(50) { sampler.choose(logits(1)) } }
        assertEquals(chosen(5), chosen(5))
        assertNotEquals(chosen(5), chosen(6))
    }

    @Test
    fun ofEqualLogitsTheLowestIdIsTaken() {
        assertEquals(1, Sampler().choose(FloatBuffer.wrap(floatArrayOf(0f, 3f, 3f))))
        assertEquals(1, Sampler().choose(FloatBuffer.wrap(floatArrayOf(Float.NEGATIVE_INFINITY, -3f))))
    }

    @Test
    fun damagedLogitsAreRefused() {
        for (bad in listOf(Float.NaN, Float.POSITIVE_INFINITY)) {
            for (logits in listOf(floatArrayOf(bad, 1f), floatArrayOf(1f, bad))) {
                assertTrue("weights are damaged" in sentenceOf { Sampler().choose(FloatBuffer.wrap(logits)) })
            }
        }
        val none = floatArrayOf(Float.NEGATIVE_INFINITY, Float.NEGATIVE_INFINITY)
        assertTrue("weights are damaged" in sentenceOf { Sampler(1.0).choose(FloatBuffer.wrap(none)) })
    }

    @Test
    fun settingsOutOfRangeAreRefused() {
        assertTrue("temperature is -1.0" in sentenceOf { Sampler(-1.0) })
        assertTrue("temperature is NaN" in sentenceOf { Sampler(Double.NaN) })
        assertTrue("top_p is 0.0" in sentenceOf { Sampler(1.0, 0.0) })
        assertTrue("top_p is 1.5" in sentenceOf { Sampler(1.0, 1.5) })
        assertTrue("no effect at temperature 0" in sentenceOf { Sampler(0.0, 0.5) })
        assertTrue("seed is -1" in sentenceOf { Sampler(1.0, 1.0, -1) })
    }
}
