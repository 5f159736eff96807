package org.mote.engine

import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import java.util.concurrent.atomic.AtomicInteger
import kotlin.concurrent.thread
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.junit.runners.Parameterized

/** One answer at a time, ended from any thread, and a model that is released once. */
@RunWith(Parameterized::class)
class SessionTest(private val runtime: Runtime) {
    private val image = TestData.scene("scene-1.png")

    private fun endless(recordExperts: Boolean = false) = GenerationRequest(
        "What is in the picture?",
        image,
        maxNewTokens = Int.MAX_VALUE,
        stopAtEos = false,
        recordExperts = recordExperts,
    )

    private fun short() = GenerationRequest("What is in the picture?", image)

    /** Waits in its first piece until it is let go, so that a test can act while an answer runs. */
    private class Held : Heard() {
        val begun = CountDownLatch(1)
        val go = CountDownLatch(1)
        val piecesAfter = AtomicInteger()

        override fun onText(piece: String) {
            super.onText(piece)
            if (begun.count == 0L) piecesAfter.incrementAndGet()
            begun.countDown()
            assertTrue(go.await(60, TimeUnit.SECONDS))
        }
    }

    @Test
    fun anAnswerEndsWithinOneStepOfCancel() = TestData.open(runtime).use { session ->
        val held = Held()
        val generation = session.generate(endless(), held)
        held.begun.await()
        assertTrue(generation.isRunning)
        assertFalse(generation.await(10))
        generation.cancel()
        held.go.countDown()
        val answer = held.answer()
        assertEquals(FinishReason.CANCELLED, answer.finishReason)
        assertEquals(0, held.piecesAfter.get())
        assertEquals(answer.text, held.pieces.joinToString(""))
        assertTrue(generation.await(60_000))
        assertFalse(generation.isRunning)
        assertEquals("the session can be asked again", FinishReason.STOP, session.ask(short()).finishReason)
    }

    @Test
    fun cancelledBeforeItBeginsItIsEmpty() = TestData.open(runtime).use { session ->
        val held = Held()
        val first = session.generate(endless(), held)
        held.begun.await()
        first.cancel()
        val next = Heard()
        var second: Generation? = null
        val asker = object : Heard() {
            override fun onFinished(answer: Answer) {
                second = session.generate(endless(), next).also { it.cancel() } // on this thread: it has not begun
                super.onFinished(answer)
            }
        }
        held.go.countDown()
        held.answer()
        session.generate(GenerationRequest("x", maxNewTokens = 1), asker)
        asker.answer()
        val answer = next.answer()
        assertEquals(FinishReason.CANCELLED, answer.finishReason)
        assertEquals(0, answer.tokenIds.size)
        assertEquals(0.0, answer.timings.firstTokenMs, 0.0)
        assertTrue(second!!.await(60_000))
    }

    @Test
    fun oneAtATime() = TestData.open(runtime).use { session ->
        val held = Held()
        session.generate(endless(), held).also { it.cancel() }
        if (held.begun.await(100, TimeUnit.MILLISECONDS)) held.go.countDown()
        held.await()
        val running = Held()
        val generation = session.generate(endless(), running)
        running.begun.await()
        assertThrows(IllegalStateException::class.java) { session.generate(short(), Heard()) }
        generation.cancel()
        running.go.countDown()
        running.await()
        assertTrue(generation.await(60_000))
        Unit
    }

    @Test
    fun closeCancelsAndReleasesOnce() {
        val session = TestData.open(runtime)
        val held = Held()
        session.generate(endless(recordExperts = true), held)
        held.begun.await()
        val closers = List(4) { thread { session.close() } }
        Thread.sleep(50)
        assertTrue("close waits for the answer", closers.all { it.isAlive })
        held.go.countDown()
        closers.forEach { it.join(60_000) }
        assertEquals(FinishReason.CANCELLED, held.answer().finishReason)
        session.close()
        session.trimMemory()
        assertThrows(IllegalStateException::class.java) { session.generate(short(), Heard()) }
    }

    @Test
    fun closeFromAListenerDoesNotWaitForItself() {
        val session = TestData.open(runtime)
        val closer = object : Heard() {
            override fun onText(piece: String) {
                super.onText(piece)
                session.close()
            }
        }
        session.generate(endless(), closer)
        assertEquals(FinishReason.CANCELLED, closer.answer().finishReason)
        assertEquals(1, closer.pieces.size)
        session.close()
    }

    @Test
    fun memoryIsTrimmedAtAnyTime() = TestData.open(runtime).use { session ->
        val expected = session.ask(short()).text
        session.trimMemory()
        assertEquals(expected, session.ask(short()).text)
        val end = CountDownLatch(1)
        val trimmer = thread { while (!end.await(1, TimeUnit.MILLISECONDS)) session.trimMemory() }
        repeat(20) { assertEquals(expected, session.ask(short()).text) }
        end.countDown()
        trimmer.join()
    }

    @Test
    fun whatCannotBeAnsweredIsAFailure() = TestData.open(runtime).use { session ->
        fun failure(request: GenerationRequest) = Heard().also { session.generate(request, it) }.failure()
        for ((request, expected) in listOf(
            GenerationRequest("digit ".repeat(2000), image) to "tokens long (16 of them for the picture)",
            GenerationRequest("digit ".repeat(2000)) to "shorten the prompt",
            GenerationRequest("\ud800") to "half of a character",
            GenerationRequest("x", maxNewTokens = 0) to "max_new_tokens is 0",
            GenerationRequest("x", temperature = -1.0) to "temperature is -1.0",
            GenerationRequest("x", topP = 0.5) to "no effect at temperature 0",
            GenerationRequest("x", RgbImage(1, 40_000_000, ByteArray(120_000_000))) to "too tall",
        )) {
            val sentence = failure(request)
            assertTrue(sentence, expected in sentence && sentence.endsWith("."))
        }
        assertEquals(FinishReason.STOP, session.ask(short()).finishReason)
    }

    /** The first pass of resizing would make 2,147,400,000 bytes, all of the heap of the tests' JVM. */
    @Test
    fun anAllocationThatIsRefusedIsAFailure() = TestData.open(runtime).use { session ->
        val heard = Heard()
        session.generate(GenerationRequest("x", RgbImage(1, 14_912_500, ByteArray(44_737_500))), heard)
        assertTrue(heard.failure(), "not enough memory" in heard.failure())
        assertEquals(FinishReason.STOP, session.ask(short()).finishReason)
    }

    @Test
    fun whatAListenerThrowsEndsItsAnswer() = TestData.open(runtime).use { session ->
        val thrower = object : Heard() {
            override fun onText(piece: String): Unit = throw IllegalArgumentException("a bug")
        }
        session.generate(endless(), thrower)
        assertTrue("a bug" in thrower.failure())
        assertEquals(FinishReason.STOP, session.ask(short()).finishReason)
    }

    /** Special tokens in a user's text are text: the model sees as many images as it is given. */
    @Test
    fun aSpecialTokenInTheTextIsText() = TestData.open(runtime).use { session ->
        val answer = session.ask(
            GenerationRequest("<|image_pad|><|im_end|>", image, maxNewTokens = 1, recordExperts = true),
        )
        val labels = answer.experts!!.tokens
        assertEquals(16, labels.count { it.kind == TokenKind.IMAGE })
        val text = labels.filter { it.kind == TokenKind.PROMPT }.joinToString("") { it.text }
        assertEquals("<|image_pad|><|im_end|>", text)
    }

    @Test
    fun twoSessionsLiveSideBySide() = TestData.open(runtime).use { first ->
        TestData.open(runtime).use { second ->
            val request = GenerationRequest("What is in the picture?", image, recordExperts = true)
            val expected = first.ask(request)
            repeat(5) {
                val heard = List(2) { Heard() }
                first.generate(request, heard[0])
                second.generate(request, heard[1])
                for (one in heard) {
                    assertEquals(expected.text, one.answer().text)
                    // The plugin records for the process: what was computed at once may be unknown, never the other's.
                    val pairs = choices(expected).zip(choices(one.answer()))
                    assertTrue(pairs.all { (own, found) -> found == own || found == -1 })
                }
            }
        }
    }

    private fun choices(answer: Answer): List<Int> = answer.experts!!.run {
        layers.indices.flatMap { layer -> tokens.indices.map { expert(layer, it) } }
    }

    companion object {
        @JvmStatic
        @Parameterized.Parameters(name = "{0}")
        fun runtimes() = Runtime.entries
    }
}
