package org.mote.demo

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.widget.ProgressBar
import android.widget.TextView
import org.mote.demo.ui.fitScreen
import org.mote.demo.ui.isShown
import org.mote.engine.Answer

/**
 * Measures a model when it is told to by an intent, usually over adb:
 *
 *     adb shell am start -n org.mote.demo/.BenchmarkActivity --es model digits --ei iterations 10
 *
 * | extra | type | meaning |
 * |---|---|---|
 * | `model` | `--es` | name of a model in the app or in `files/models`; or a path below that or `files/mote` |
 * | `iterations` | `--ei` | measured answers, 1 to 10,000; 5 by default |
 * | `warmup` | `--ei` | answers before them, 0 to 10,000; 1 by default |
 * | `max_new_tokens` | `--ei` | tokens of each answer, 1 to 1,048,576; 64 by default |
 * | `threads` | `--ei` | of the runtime, 1 to 1,024; its own choice by default |
 * | `runtime` | `--es` | `onnxruntime` or `executorch`; the first that the model was exported for by default |
 * | `prompt` | `--es` | the question, at most 65,536 characters |
 * | `image` | `--es` | path of a picture below one of the app's folders; without it the question has no picture |
 * | `stop_at_eos` | `--ez` | whether an answer may end before `max_new_tokens`; false by default |
 * | `output` | `--es` | a name, for `files/benchmarks/NAME`; or a path relative to `files`, whose folder exists |
 *
 * `OUTPUT.status` is one of `running`, `done` and `failed: SENTENCE`; with `done`, `OUTPUT.json` is the record of
 * docs/runner.md. Both appear whole or not at all. `files` is `/sdcard/Android/data/org.mote.demo/files`.
 *
 * The screen is exported, so any app may send such an intent: it reads models and pictures from the app's own folders
 * only, writes there only, bounds every number, and runs one benchmark at a time.
 */
class BenchmarkActivity : Activity() {
    private val benchmark by lazy { DemoApplication.of(this).benchmark }
    private val onState = ::show

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_benchmark)
        showHeader(R.string.benchmark)
        fitScreen(findViewById(R.id.screen), findViewById(R.id.scroll))
        val isRepeated = savedInstanceState != null || intent.flags and Intent.FLAG_ACTIVITY_LAUNCHED_FROM_HISTORY != 0
        if (!isRepeated) benchmark.start(intent)
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        benchmark.start(intent)
    }

    override fun onStart() {
        super.onStart()
        benchmark.observe(onState)
        show()
    }

    override fun onStop() {
        benchmark.unobserve(onState)
        super.onStop()
    }

    private fun show() {
        val progress = findViewById<ProgressBar>(R.id.progress)
        val text = findViewById<TextView>(R.id.state)
        val state = benchmark.state
        progress.isShown(state is Benchmark.State.Running)
        text.setTextColor(getColor(if (state is Benchmark.State.Failed) R.color.error else R.color.text))
        when (state) {
            is Benchmark.State.Idle -> text.setText(R.string.benchmark_idle)
            is Benchmark.State.Failed -> text.text = state.sentence
            is Benchmark.State.Running -> {
                showRequest(state.request)
                progress.max = state.total
                progress.progress = state.answered
                text.text = if (state.answered == 0) {
                    getString(R.string.benchmark_opening)
                } else {
                    getString(R.string.benchmark_progress, state.answered, state.total)
                }
            }
            is Benchmark.State.Done -> {
                showRequest(state.request)
                text.text =
                    summary(state.answers) + "\n\n" + getString(R.string.benchmark_done, state.request.output.record)
            }
        }
    }

    private fun showRequest(request: BenchmarkRequest) {
        findViewById<TextView>(R.id.subject).text = request.model.name
        val tokens = resources.getQuantityString(R.plurals.tokens, request.maxNewTokens, request.maxNewTokens)
        val threads = request.threads?.let { resources.getQuantityString(R.plurals.thread_count, it, it) }
            ?: getString(R.string.threads_of_runtime)
        val runtime = request.runtime?.let(::nameOf) ?: getString(R.string.runtime_automatic)
        findViewById<TextView>(R.id.setup).text = "$runtime · $threads · $tokens"
    }

    private fun summary(answers: List<Answer>): String {
        fun median(of: (Answer) -> Double) = answers.map(of).sorted()[answers.size / 2]
        val first = duration(median { it.timings.timeToFirstTokenMs })
        val prefill = getString(R.string.tokens_per_second, digits(median { it.timings.prefillTokensPerSecond }))
        val decode = getString(R.string.tokens_per_second, digits(median { it.timings.decodeTokensPerSecond }))
        return listOf(
            R.string.figure_first_token to first, R.string.figure_prefill to prefill, R.string.figure_decode to decode,
        )
            .joinToString("\n") { (name, value) -> "${getString(name)}: $value" }
    }
}
