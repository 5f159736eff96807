package org.mote.engine

import org.junit.Assert.assertEquals
import org.mote.engine.ExpertRecorder.Companion.WHOLE_CALL
import org.mote.engine.ExpertRecorder.Record
import org.junit.Test

/** How lines of a recording become choices; AnswersTest has real recordings. */
class ExpertRecorderTest {
    private val moe = MoeSpec(intArrayOf(4, 2), 4, 2, false, 1, "2bit", "bf16", 0)

    private fun call(layer: Long, call: Int, vararg experts: Pair<Int, Int>): List<Record> =
        experts.flatMapIndexed { token, (first, second) ->
            listOf(Record(layer, call, token, 0, first), Record(layer, call, token, 1, second))
        } + Record(layer, call, experts.size, WHOLE_CALL, 0xffff)

    private fun choices(records: List<Record>, tokens: Int) =
        ExpertRecorder.choicesOf(moe, records, tokens).map { it.toInt() }

    private val first = call(1, 0, 0 to 1, 1 to 2) + call(2, 1, 2 to 3, 3 to 0)
    private val second = call(1, 2, 3 to 1) + call(2, 3, 0 to 2)

    @Test
    fun aPromptThatWasCutCountsOn() {
        val records = first + second
        val expected = listOf(0, 1, 1, 2, 3, 1) + listOf(2, 3, 3, 0, 0, 2)
        assertEquals(expected, choices(records, 3))
        assertEquals(expected, choices(records.reversed(), 3)) // threads may have written them in another order
    }

    /** A row that was not finite has no choice, but its place. */
    @Test
    fun aTokenWithoutChoicesKeepsItsPlace() {
        val records = (first + second).filterNot { it.call == 0 && it.token == 1 && it.rank >= 0 }
        assertEquals(listOf(0, 1, -1, -1, 3, 1), choices(records, 3).take(6))
    }

    @Test
    fun whatDoesNotFitIsUnknown() {
        val unknown = List(8) { -1 }
        assertEquals(unknown, choices(emptyList(), 2))
        assertEquals("one layer of two", unknown, choices(call(1, 0, 0 to 1, 1 to 2), 2))
        val other = Record(7, 2, 5, WHOLE_CALL, 0) // a layer without experts
        val records = call(1, 0, 9 to 1, 1 to 2, 3 to 3) + other + call(2, 1, 2 to -5, 3 to 0)
        assertEquals(listOf(-1, 1, 1, 2, 2, -1, 3, 0), choices(records, 2))
    }

    @Test
    fun choicesAreLookedUpByLayerTokenAndRank() {
        val labels = List(3) { TokenLabel("$it", TokenKind.PROMPT) }
        val chosen = ShortArray(12) { if (it == 1) -1 else (it % 4).toShort() }
        val choices = ExpertChoices(intArrayOf(2, 4), 4, 2, labels, chosen)
        assertEquals(listOf(0, -1), listOf(choices.expert(0, 0, 0), choices.expert(0, 0, 1)))
        assertEquals(listOf(2, 3), listOf(choices.expert(1, 0, 0), choices.expert(1, 0, 1)))
        assertEquals(listOf(2, 1, 1, 1), choices.load(0).toList())
    }
}
