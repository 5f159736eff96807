package org.mote.demo

import android.content.Intent
import java.io.File
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config

/** A benchmark as adb starts one. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class BenchmarkTest {
    @get:Rule
    val rule = AppRule()
    private val app get() = rule.app
    private val files get() = checkNotNull(app.getExternalFilesDir(null))

    private fun intent(vararg extras: Pair<String, Any>) = Intent(app, BenchmarkActivity::class.java).apply {
        for ((name, value) in extras) {
            when (value) {
                is Int -> putExtra(name, value)
                is Boolean -> putExtra(name, value)
                else -> putExtra(name, value as String)
            }
        }
    }

    private fun run(vararg extras: Pair<String, Any>): BenchmarkActivity {
        val activity = rule.open(BenchmarkActivity::class.java, intent(*extras)).get()
        rule.waitUntil("the end") { app.benchmark.state !is Benchmark.State.Running }
        rule.settle()
        return activity
    }

    @Test
    fun theRecordIsWhatMoteProfileReads() {
        val model = rule.pushModel("both")
        rule.openChat() // whose model makes room
        val scene = File(files, "mote/run-0/question.png").apply { parentFile!!.mkdirs() }
        File(repository, "examples/digits_vqa/images/scene-5.png").copyTo(scene)
        val prompt = "What is the sum of the digits?"
        for (runtime in listOf("onnxruntime", "executorch")) {
            val output = "mote/run-0/$runtime"
            val activity = run(
                "model" to model.path, "runtime" to runtime, "iterations" to 3, "warmup" to 1, "max_new_tokens" to 12,
                "threads" to 1, "prompt" to prompt, "image" to scene.path, "output" to output,
            )
            assertEquals(activity.text(R.id.state), "done", File(files, "$output.status").readText())
            val record = JSONObject(File(files, "$output.json").readText())
            assertEquals("mote-profile", record.getString("format"))
            assertEquals(runtime, record.getString("runtime"))
            assertEquals(listOf(1, 1, 1), listOf("threads", "warmup", "num_images").map(record::getInt))
            val repetitions = record.getJSONArray("repetitions")
            assertEquals(3, repetitions.length())
            for (index in 0 until 3) assertEquals(12, repetitions.getJSONObject(index).getInt("generated_tokens"))
            assertTrue(record.getJSONObject("memory").getJSONArray("samples").length() >= 4)
            assertTrue(activity.text(R.id.state), "$output.json" in activity.text(R.id.state))
            keep(record, runtime)
        }
        run(
            "model" to "both", "iterations" to 1, "warmup" to 0, "image" to scene.path, "prompt" to prompt,
            "stop_at_eos" to true, "output" to "short",
        )
        val answer =
            JSONObject(File(files, "benchmarks/short.json").readText()).getJSONArray("repetitions").getJSONObject(0)
        assertEquals("9+4+2=15 is eight tokens", 8, answer.getInt("generated_tokens"))
    }

    /** For Python's test, which reads it as mote-profile does. */
    private fun keep(record: JSONObject, runtime: String) =
        File(System.getProperty("mote.screenshot.dir")!!).resolveSibling("benchmark-$runtime.json").writeText(
            record.toString(),
        )

    @Test
    fun whatIsRefusedSaysSoInItsStatus() {
        rule.openChat()
        val refused = listOf(
            "model" to "../../etc" to "the extra model is ../../etc; expected a place below",
            "model" to "/etc" to "the extra model is /etc; expected a place below",
            "model" to "${files.path}/models/../../other" to "expected a place below",
            "model" to "nowhere" to "there is no model named nowhere; push it to",
            "model" to 7 to "the extra model is no text",
            "iterations" to 0 to "the extra iterations is 0; expected 1 to 10000",
            "iterations" to "5" to "the extra iterations is no integer",
            "threads" to 5000 to "the extra threads is 5000; expected 1 to 1024",
            "runtime" to "tflite" to "the extra runtime is tflite; expected onnxruntime or executorch",
            "image" to "/proc/self/environ" to "the extra image is /proc/self/environ; expected a place below",
            "prompt" to "x".repeat(70_000) to "the extra prompt has 70000 characters; expected at most 65536",
        )
        for ((extra, sentence) in refused) {
            val activity =
                run(*(mapOf<String, Any>("model" to "digits", "output" to "refused") + extra).toList().toTypedArray())
            val status = File(files, "benchmarks/refused.status").readText()
            assertTrue("$extra: $status", status.startsWith("failed: ") && sentence in status)
            assertEquals(status.removePrefix("failed: "), activity.text(R.id.state))
        }
        for (output in listOf("../x", "/sdcard/x", "a/../b", "nowhere/x", ".hidden", "")) {
            run("model" to "digits", "output" to output)
            val status = File(files, "benchmarks/benchmark.status").readText()
            assertTrue("$output: $status", status.startsWith("failed: the extra output is $output"))
        }
        assertFalse(File(files, "benchmarks/refused.json").exists())
        assertTrue("the chat's model stays open", app.loadedModel.state is LoadedModel.State.Ready)
    }

    @Test
    fun rotationDoesNotStartItAgainAndASecondOneIsRefused() {
        rule.openChat()
        val first = intent("model" to "digits", "iterations" to 2, "max_new_tokens" to 4, "output" to "first")
        val controller = rule.open(BenchmarkActivity::class.java, first)
        app.benchmark.start(intent("model" to "digits", "output" to "second"))
        controller.recreate()
        rule.waitUntil("the end") { app.benchmark.state !is Benchmark.State.Running }
        rule.settle()
        assertEquals("done", File(files, "benchmarks/first.status").readText())
        assertEquals(2, (app.benchmark.state as Benchmark.State.Done).answers.size)
        assertTrue("another benchmark is running" in File(files, "benchmarks/second.status").readText())
        assertEquals(listOf("first.json", "first.status", "second.status"), File(files, "benchmarks").list()!!.sorted())
    }

    @Test
    fun aModelThatCannotBeOpenedIsAFailure() {
        val folder = rule.pushModel("damaged")
        File(folder, "onnx/tokenizer.json").appendText(" ")
        rule.openChat()
        run("model" to "damaged")
        val status = File(files, "benchmarks/benchmark.status").readText()
        assertTrue(status, status.startsWith("failed: tokenizer.json in ") && status.endsWith("."))
        assertFalse('\n' in status)
    }
}
