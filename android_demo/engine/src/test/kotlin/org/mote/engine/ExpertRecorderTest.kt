package org.mote.engine

import org.junit.Assert.assertEquals
import org.junit.Test

/** How lines of a recording become choices; AnswersTest has real recordings. */
class ExpertRecorderTest {
    private val moe = MoeSpec(intArrayOf(4, 2), 4, 2, false, 1, "2bit", "bf16", 0)

    private fun call(layer: Long, call: Int, vararg experts: Pair<Int, Int>): List<ExpertRecorder.Record> =
        experts.flatMapIndexed { token, (first, second) ->
            listOf(ExpertRecorder.Record(layer, call, token, 0, first), ExpertRecorder.Record(layer, call, token, 1, second))
        } + ExpertRecorder.Record(layer, call, experts.size, ExpertRecorder.WHOLE_CALL, 0xffff)

    private fun choices(records: List<ExpertRecorder.Record>, tokens: Int) = ExpertRecorder.choicesOf(moe, records, tokens).map { it.toInt() }

    @Test
    fun aPromptThatWasCutCountsOn() {
        val records = call(900, 0, 0 to 1, 1 to 2) + call(100, 1, 2 to 3, 3 to 0) + call(900, 2, 3 to 1) + call(100, 3, 0 to 2)
        val expected = listOf(0, 1, 1, 2, 3, 1) + listOf(2, 3, 3, 0, 0, 2)
        assertEquals(expected, choices(records, 3))
        assertEquals(expected, choices(records.reversed(), 3)) // threads may have written them in another order
    }

    /** A row that was not finite has no choice, but its place. */
    @Test
    fun aTokenWithoutChoicesKeepsItsPlace() {
        val records = (call(1, 0, 0 to 1, 1 to 2) + call(2, 1, 2 to 3, 3 to 0) + call(1, 2, 3 to 1) + call(2, 3, 0 to 2))
            .filterNot { it.call == 0 && it.token == 1 && it.rank >= 0 }
        assertEquals(listOf(0, 1, -1, -1, 3, 1), choices(records, 3).take(6))
    }

    @Test
    fun whatDoesNotFitIsUnknown() {
        val unknown = List(8) { -1 }
        assertEquals(unknown, choices(emptyList(), 2))
        assertEquals("one layer of two", unknown, choices(call(1, 0, 0 to 1, 1 to 2), 2))
        val other = call(7, 2).map { ExpertRecorder.Record(7, 2, 5, ExpertRecorder.WHOLE_CALL, 0) } // a layer without experts
        val records = call(1, 0, 9 to 1, 1 to 2, 3 to 3) + other + call(2, 1, 2 to -5, 3 to 0)
        assertEquals(listOf(-1, 1, 1, 2, 2, -1, 3, 0), choices(records, 2))
    }

    @Test
    fun choicesAreLookedUpByLayerTokenAndRank() {
        val labels = List(3) { TokenLabel("$it", TokenKind.PROMPT) }
        val choices = ExpertChoices(intArrayOf(2, 4), 4, 2, labels, ShortArray(12) { (it % 4).toShort() }.also { it[1] = -1 })
        assertEquals(listOf(0, -1), listOf(choices.expert(0, 0, 0), choices.expert(0, 0, 1)))
        assertEquals(listOf(2, 3), listOf(choices.expert(1, 0, 0), choices.expert(1, 0, 1)))
        assertEquals(listOf(2, 1, 1, 1), choices.load(0).toList())
    }
}
