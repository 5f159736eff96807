package org.mote.demo

import android.view.LayoutInflater
import android.view.View
import android.widget.GridLayout
import android.widget.TextView
import org.mote.demo.data.AnswerProfile
import org.mote.demo.ui.TimelineView
import org.mote.demo.ui.dp
import org.mote.engine.Runtime

/** The figures of one answer, in `layout/panel_performance.xml`. */
internal class PerformancePanel(private val panel: View) {
    private val context = panel.context

    fun show(profile: AnswerProfile) {
        panel.findViewById<TextView>(R.id.total).text =
            context.getString(R.string.answered_in, context.duration(profile.totalMs))
        panel.findViewById<TextView>(R.id.setup).text = setup(profile)
        panel.findViewById<TimelineView>(R.id.timeline).show(stages(profile))
        val grid = panel.findViewById<GridLayout>(R.id.figures)
        grid.removeAllViews()
        figures(profile).forEachIndexed { index, (name, value) -> grid.addView(figure(name, value), place(index)) }
    }

    private fun setup(profile: AnswerProfile): String {
        val runtime =
            Runtime.entries.firstOrNull { it.id == profile.runtime }?.let { context.nameOf(it) } ?: profile.runtime
        val threads = profile.threads?.let { context.resources.getQuantityString(R.plurals.thread_count, it, it) }
            ?: context.getString(R.string.threads_of_runtime)
        return "$runtime ${profile.runtimeVersion} · $threads"
    }

    private fun stages(profile: AnswerProfile): List<TimelineView.Stage> = listOfNotNull(
        stage(R.string.stage_encode, profile.encodeMs, R.color.stage_encode),
        stage(R.string.stage_image, profile.imageMs, R.color.stage_image).takeIf { profile.hasImage },
        stage(R.string.stage_prefill, profile.prefillMs, R.color.stage_prefill),
        stage(R.string.stage_decode, profile.decodeMs, R.color.stage_decode),
    )

    private fun stage(name: Int, milliseconds: Double, color: Int) = TimelineView.Stage(
        context.getString(R.string.stage_legend, context.getString(name), context.duration(milliseconds)),
        milliseconds,
        context.getColor(color),
    )

    private fun figures(profile: AnswerProfile): List<Pair<Int, String>> {
        val none = context.getString(R.string.none)
        fun rate(value: Double) = if (value > 0) context.getString(R.string.tokens_per_second, digits(value)) else none
        fun time(value: Double) = if (value > 0) context.duration(value) else none
        return listOf(
            R.string.figure_first_token to time(profile.firstTokenMs),
            R.string.figure_image to if (profile.hasImage) time(profile.imageMs) else none,
            R.string.figure_prefill to rate(profile.prefillTokensPerSecond),
            R.string.figure_decode to rate(profile.decodeTokensPerSecond),
            R.string.figure_anonymous to context.bytes(profile.anonymousBytes),
            R.string.figure_file to context.bytes(profile.fileBytes),
            R.string.figure_load to time(profile.loadMs),
            R.string.figure_tokens to
                context.getString(R.string.tokens_sum, profile.promptTokens, profile.generatedTokens),
        )
    }

    private fun figure(name: Int, value: String): View =
        LayoutInflater.from(context).inflate(R.layout.figure, panel.findViewById(R.id.figures), false).apply {
            findViewById<TextView>(R.id.name).setText(name)
            findViewById<TextView>(R.id.value).text = value
            contentDescription = "${context.getString(name)}: $value"
        }

    /** Two equal columns. */
    private fun place(index: Int) = GridLayout.LayoutParams(
        GridLayout.spec(index / 2),
        GridLayout.spec(index % 2, 1, GridLayout.FILL, 1f),
    ).apply {
        width = 0
        val gap = context.dp(5)
        setMargins(if (index % 2 == 0) 0 else gap, 0, if (index % 2 == 0) gap else 0, 2 * gap)
    }
}
