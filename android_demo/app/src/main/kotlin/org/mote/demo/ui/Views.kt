package org.mote.demo.ui

import android.content.Context
import android.graphics.Outline
import android.util.TypedValue
import android.view.View
import android.view.ViewOutlineProvider

internal fun Context.dp(value: Float): Float =
    TypedValue.applyDimension(TypedValue.COMPLEX_UNIT_DIP, value, resources.displayMetrics)

internal fun Context.dp(value: Int): Int = Math.round(dp(value.toFloat()))

internal fun Context.sp(value: Float): Float =
    TypedValue.applyDimension(TypedValue.COMPLEX_UNIT_SP, value, resources.displayMetrics)

/** Rounds the corners of a view with what it shows. */
internal fun View.roundCorners(radiusDp: Float) {
    val radius = context.dp(radiusDp)
    outlineProvider = object : ViewOutlineProvider() {
        override fun getOutline(view: View, outline: Outline) =
            outline.setRoundRect(0, 0, view.width, view.height, radius)
    }
    clipToOutline = true
}

internal fun View.isShown(shown: Boolean) {
    visibility = if (shown) View.VISIBLE else View.GONE
}
