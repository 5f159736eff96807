package org.mote.engine

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** A record is read by mote-profile's own reader. */
class ProfileRecordTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private fun readByPython(record: File): List<String> {
        val program = "import json, sys; from mote_runtime.profile.record import Record; " +
            "r = Record.from_json(json.load(open(sys.argv[1]))); " +
            "print(r.runtime, r.threads, len(r.repetitions), r.repetitions[0].generated_tokens, " +
            "len(r.memory.samples) > 1, r.num_images)"
        return TestData.python(program, record).split(" ")
    }

    @Test
    fun pythonReadsARecord() {
        for (runtime in Runtime.entries) {
            MoteSession.open(TestData.model, TestData.libraries, runtime, EngineOptions(threads = 2)).use { session ->
                val image = TestData.scene("scene-2.png")
                val request = GenerationRequest("Count the 7s.", image, maxNewTokens = 5, stopAtEos = false)
                val (answers, samples) = MemorySampler().use { sampler ->
                    List(3) { session.ask(request) }.also { sampler.sample() } to sampler.samples()
                }
                assertTrue(samples.zipWithNext().all { (a, b) -> a.atMs <= b.atMs })
                val record = temporary.newFile()
                record.writeText(ProfileRecord.toJson(session, answers, "mote-android test", 1, samples, 1))
                assertEquals(listOf(runtime.id, "2", "3", "5", "True", "1"), readByPython(record))
            }
        }
    }

    /** An answer without a token has no first one. */
    @Test
    fun pythonReadsARecordOfAnEmptyAnswer() {
        val timings = Timings(1e12, 1e12, 1e12, 1e12, 0.0, 1e12, 0.0, 3, 0, 0, DoubleArray(0))
        val memory = MemoryUse.now()
        val empty = Answer("", LongArray(0), FinishReason.STOP, timings, memory, null)
        TestData.open(Runtime.ONNX_RUNTIME).use { session ->
            val record = temporary.newFile()
            val samples = listOf(memory, memory)
            record.writeText(ProfileRecord.toJson(session, listOf(empty), "mote-android test", 0, samples, 0))
            assertEquals(listOf("onnxruntime", "None", "1", "0", "True", "0"), readByPython(record))
        }
    }
}
