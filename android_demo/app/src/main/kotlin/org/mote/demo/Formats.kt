package org.mote.demo

import android.content.Context
import android.text.format.Formatter
import java.util.Locale
import org.mote.engine.Runtime

/** A size as people read it. */
internal fun Context.bytes(bytes: Long): String = Formatter.formatShortFileSize(this, bytes)

/** A duration with as many digits as are worth reading. */
internal fun Context.duration(milliseconds: Double): String =
    if (milliseconds < 1000) {
        getString(R.string.milliseconds, digits(milliseconds))
    } else {
        getString(R.string.seconds, digits(milliseconds / 1000))
    }

/** Three significant digits or so. */
internal fun digits(value: Double): String {
    val format = if (value >= 100) "%.0f" else if (value >= 10) "%.1f" else "%.2f"
    return String.format(Locale.getDefault(), format, value)
}

internal fun percent(share: Double): String = String.format(Locale.getDefault(), "%.0f %%", share * 100)

internal fun Context.nameOf(runtime: Runtime): String = getString(
    when (runtime) {
        Runtime.ONNX_RUNTIME -> R.string.runtime_onnxruntime
        Runtime.EXECUTORCH -> R.string.runtime_executorch
    },
)
