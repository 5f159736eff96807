package org.mote.engine

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test

/** The demo model in both runtimes, compared with the answers of mote_runtime. */
class AnswersTest {
    private val golden = TestData.goldenJson("answers.json").asList().map { it.asMap() }

    private fun question(case: Map<String, Any?>, recordExperts: Boolean = false) = GenerationRequest(
        case["question"] as String,
        TestData.scene(case["image"] as String),
        maxNewTokens = 32,
        recordExperts = recordExperts,
    )

    private fun compare(runtime: Runtime) = TestData.open(runtime).use { session ->
        assertEquals(runtime, session.runtime)
        assertEquals(66, golden.size)
        for (case in golden) {
            val heard = Heard()
            session.generate(question(case), heard)
            val answer = heard.answer()
            assertEquals("$case", case["text"], answer.text)
            assertEquals("$case", case["token_ids"].asInts(), answer.tokenIds.map { it.toInt() })
            assertEquals(case["finish_reason"], answer.finishReason.name.lowercase())
            assertEquals((case["prompt_tokens"] as Long).toInt(), answer.timings.promptTokens)
            assertEquals(answer.text, heard.pieces.joinToString(""))
            assertNull(answer.experts)
        }
    }

    @Test
    fun onnxRuntimeAnswersAsInPython() = compare(Runtime.ONNX_RUNTIME)

    @Test
    fun executorchAnswersAsInPython() = compare(Runtime.EXECUTORCH)

    private fun experts(runtime: Runtime, count: Int): List<ExpertChoices> = TestData.open(runtime).use { session ->
        golden.take(count).map { session.ask(question(it, recordExperts = true)).experts!! }
    }

    private fun ExpertChoices.all() = layers.indices.flatMap { layer -> tokens.indices.map { expert(layer, it) } }

    @Test
    fun bothRuntimesChooseTheSameExperts() {
        val (first, second) = Runtime.entries.map { experts(it, 12) }
        for ((a, b) in first.zip(second)) {
            assertEquals(listOf(0, 1, 2, 3), a.layers.toList())
            assertEquals(a.tokens.map { it.text }, b.tokens.map { it.text })
            assertEquals(a.all(), b.all())
            assertEquals(4, a.numExperts)
            // The last token of an answer that ended at an end-of-sequence token was fed to the model, as all others.
            assertTrue(a.all().all { it in 0 until a.numExperts })
            for (layer in a.layers.indices) assertEquals(a.tokens.size, a.load(layer).sum())
        }
        assertTrue("all tokens go to one expert", first.flatMap { it.all() }.toSet().size > 1)
    }

    /** What a step chooses for a token is what a pass over the whole sequence chooses for it. */
    @Test
    fun stepsChooseWhatAPromptChooses() {
        for (runtime in Runtime.entries) {
            val manifest = Manifest.read(File(TestData.model, runtime.subfolder))
            engine(manifest).use { engine ->
                val ids = LongArray(100) { (it * 37L) % 256 }
                fun recorded(cut: List<LongArray>): List<Int> {
                    engine.reset()
                    ExpertRecorder.attach(TestData.libraries.path(runtime.plugin), manifest.moe)!!.use { recorder ->
                        for (piece in cut) recorder.record(piece.size) { engine.prefill(piece, null) }
                        return recorder.choices(ids.map { TokenLabel("", TokenKind.PROMPT) }).all()
                    }
                }
                val whole = recorded(listOf(ids))
                assertTrue(whole.all { it >= 0 })
                assertEquals(whole, recorded(ids.map { longArrayOf(it) }))
                assertEquals(whole, recorded(listOf(ids.copyOfRange(0, 63), ids.copyOfRange(63, 100))))
            }
        }
    }

    private fun engine(manifest: Manifest): MoteEngine = when (manifest.runtime) {
        Runtime.ONNX_RUNTIME -> OrtEngine(manifest, TestData.libraries, null)
        Runtime.EXECUTORCH -> ExecuTorchEngine(manifest, TestData.libraries, null)
    }

    @Test
    fun labelsSayWhereATokenComesFrom() = TestData.open(Runtime.ONNX_RUNTIME).use { session ->
        val answer = session.ask(question(golden[2], recordExperts = true))
        val labels = answer.experts!!.tokens
        val text = { kind: TokenKind -> labels.filter { it.kind == kind }.joinToString("") { it.text } }
        assertEquals(golden[2]["question"], text(TokenKind.PROMPT))
        assertEquals(answer.text, text(TokenKind.ANSWER))
        assertEquals(session.manifest.model.numImageTokens, labels.count { it.kind == TokenKind.IMAGE })
        assertEquals("<|im_start|>", labels.first().text)
        assertEquals(answer.timings.promptTokens + answer.timings.generatedTokens, labels.size)
    }

    @Test
    fun timingsAreInOrderAndMemoryIsSeen() = TestData.open(Runtime.ONNX_RUNTIME).use { session ->
        assertTrue(session.loadMs > 0)
        val answer = session.ask(question(golden[8]))
        val timings = answer.timings
        val marks = timings.run {
            listOf(inferenceStartMs, tokenEncodeEndMs, imageEncodeEndMs, promptEvalEndMs, firstTokenMs, inferenceEndMs)
        }
        assertEquals(marks.sorted(), marks)
        assertTrue(session.loadEndMs <= timings.inferenceStartMs)
        assertEquals(answer.tokenIds.size, timings.generatedTokens)
        assertEquals(timings.firstTokenMs, timings.tokenMs.first(), 0.0)
        assertEquals(answer.tokenIds.size, timings.decodeSteps) // the last step gave the end of the sequence
        assertTrue(timings.imageEncodeMs > 0 && timings.timeToFirstTokenMs >= timings.imageEncodeMs)
        assertTrue(timings.prefillTokensPerSecond > 0 && timings.decodeTokensPerSecond > 0)
        assertTrue(answer.memory.anonymousBytes > 1 shl 20)
        assertTrue(answer.memory.peakAnonymousBytes >= answer.memory.anonymousBytes)
    }

    @Test
    fun limitsEndAnAnswer() {
        for (runtime in Runtime.entries) {
            TestData.open(runtime).use { session ->
                val image = TestData.scene("scene-0.png")
                fun ask(maxNewTokens: Int, stopAtEos: Boolean = true) = session.ask(
                    GenerationRequest("How many digits do you see?", image, maxNewTokens, stopAtEos = stopAtEos),
                )
                assertEquals(FinishReason.LENGTH, ask(1).finishReason)
                val long = ask(7, stopAtEos = false)
                assertEquals(FinishReason.LENGTH, long.finishReason)
                assertEquals(7, long.tokenIds.size)
                assertEquals(6, long.timings.decodeSteps)
                val full = ask(100_000, stopAtEos = false)
                assertEquals(FinishReason.CONTEXT, full.finishReason)
                // The last token has no place in the cache any more, and needs none.
                assertEquals(session.manifest.contextLength + 1, full.timings.promptTokens + full.tokenIds.size)
                assertTrue(session.manifest.model.imageTokenId!!.toLong() !in full.tokenIds.toList())
            }
        }
    }

    @Test
    fun withATemperatureTheSeedDecides() = TestData.open(Runtime.ONNX_RUNTIME).use { session ->
        fun ask(seed: Long) = session.ask(
            GenerationRequest(
                "What is in the picture?",
                TestData.scene("scene-1.png"),
                maxNewTokens = 12,
                temperature = 3.0,
                topP = 0.99,
                seed = seed,
                stopAtEos = false,
            ),
        ).tokenIds.toList()
        assertEquals(ask(1), ask(1))
        assertTrue(ask(1) != ask(2))
    }
}
