package org.mote.demo

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.widget.RadioButton
import android.widget.RadioGroup
import android.widget.SeekBar
import android.widget.TextView
import java.util.Locale
import org.mote.demo.data.Settings
import org.mote.demo.ui.dp
import org.mote.demo.ui.fitScreen
import org.mote.engine.Runtime

/** How models are opened and answers made. A change is kept at once, and takes effect with the next question. */
class SettingsActivity : Activity() {
    private val settings by lazy { DemoApplication.of(this).settings }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_settings)
        showHeader(R.string.settings)
        fitScreen(findViewById(R.id.screen), findViewById(R.id.scroll))
        findViewById<TextView>(R.id.about).text = getString(R.string.about, DemoApplication.of(this).version)
        findViewById<View>(R.id.reset).setOnClickListener {
            settings.reset()
            show()
        }
        show()
    }

    private fun show() {
        showRuntimes()
        showThreads()
        showLength()
        showTemperature()
    }

    private fun showRuntimes() {
        val group = findViewById<RadioGroup>(R.id.runtimes)
        group.setOnCheckedChangeListener(null)
        group.removeAllViews()
        for (runtime in listOf(null) + Runtime.entries) group.addView(choice(runtime))
        group.check(idOf(settings.runtime))
        group.setOnCheckedChangeListener { _, id -> settings.runtime = Runtime.entries.firstOrNull { idOf(it) == id } }
    }

    private fun choice(runtime: Runtime?): View = RadioButton(this).apply {
        val isThere = runtime == null || DemoApplication.of(context).libraries.has(runtime)
        val name = runtime?.let(::nameOf) ?: getString(R.string.runtime_automatic)
        id = idOf(runtime)
        text = if (isThere) name else getString(R.string.runtime_missing, name)
        isEnabled = isThere
        textSize = 16f
        minHeight = dp(48)
    }

    private fun idOf(runtime: Runtime?): Int = 1 + (runtime?.let { it.ordinal + 1 } ?: 0)

    private fun showThreads() = showSlider(
        findViewById(R.id.threads), R.string.threads, R.string.threads_note, Settings.maxThreads, settings.threads ?: 0,
        { if (it == 0) getString(R.string.threads_automatic) else "$it" },
    ) { settings.threads = it.takeIf { count -> count > 0 } }

    private fun showLength() = showSlider(
        findViewById(R.id.max_new_tokens), R.string.max_new_tokens, R.string.max_new_tokens_note,
        Settings.ANSWER_LENGTHS.lastIndex, Settings.ANSWER_LENGTHS.indexOf(settings.maxNewTokens),
        { Settings.ANSWER_LENGTHS[it].let { count -> resources.getQuantityString(R.plurals.tokens, count, count) } },
    ) { settings.maxNewTokens = Settings.ANSWER_LENGTHS[it] }

    private fun showTemperature() = showSlider(
        findViewById(R.id.temperature), R.string.temperature, R.string.temperature_note,
        Settings.TEMPERATURE_STEPS, Math.round(settings.temperature / Settings.TEMPERATURE_STEP).toInt(),
        { String.format(Locale.getDefault(), "%.1f", it * Settings.TEMPERATURE_STEP) },
    ) { settings.temperature = it * Settings.TEMPERATURE_STEP }

    private fun showSlider(
        card: View,
        name: Int,
        note: Int,
        last: Int,
        now: Int,
        text: (Int) -> String,
        keep: (Int) -> Unit,
    ) {
        card.findViewById<TextView>(R.id.name).setText(name)
        card.findViewById<TextView>(R.id.note).setText(note)
        val value = card.findViewById<TextView>(R.id.value)
        val slider = card.findViewById<SeekBar>(R.id.slider)
        fun tell(position: Int) {
            value.text = text(position)
            slider.contentDescription = getString(name) + ", " + text(position)
        }
        slider.setOnSeekBarChangeListener(null)
        slider.max = last
        slider.progress = now
        tell(now)
        slider.setOnSeekBarChangeListener(object : SeekBar.OnSeekBarChangeListener {
            override fun onProgressChanged(bar: SeekBar, position: Int, fromUser: Boolean) {
                tell(position)
                keep(position)
            }

            override fun onStartTrackingTouch(bar: SeekBar) = Unit

            override fun onStopTrackingTouch(bar: SeekBar) = Unit
        })
    }
}
