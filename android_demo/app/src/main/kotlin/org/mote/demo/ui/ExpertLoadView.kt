package org.mote.demo.ui

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.RectF
import android.util.AttributeSet
import android.view.View
import org.mote.demo.percent

/** The load of each expert of a layer: a bar for each, as long as its share of the tokens. */
class ExpertLoadView(context: Context, attributes: AttributeSet? = null) : View(context, attributes) {
    private var shares = DoubleArray(0)
    private val colors = ExpertColors(context)
    private val paint = Paint(Paint.ANTI_ALIAS_FLAG)
    private val text = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        textSize = context.sp(12f)
        color = context.getColor(org.mote.demo.R.color.text_secondary)
    }
    private val number = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        textSize = context.sp(11f)
        textAlign = Paint.Align.CENTER
    }
    private val barHeight = context.dp(16f)
    private val pitch = context.dp(21f)
    private val rect = RectF()

    /** @param shares of the experts, 0 to 1. */
    fun show(shares: DoubleArray) {
        this.shares = shares
        requestLayout()
        invalidate()
    }

    override fun onMeasure(widthMeasureSpec: Int, heightMeasureSpec: Int) {
        setMeasuredDimension(MeasureSpec.getSize(widthMeasureSpec), (pitch * shares.size).toInt())
    }

    override fun onDraw(canvas: Canvas) {
        val room = width - text.measureText(percent(1.0)) - context.dp(10f)
        val greatest = shares.maxOrNull()?.coerceAtLeast(1e-9) ?: return
        shares.forEachIndexed { expert, share ->
            val top = expert * pitch
            // No shorter than its number, so that an expert without tokens is still seen.
            val right = (room * share / greatest).toFloat().coerceAtLeast(barHeight * 1.5f)
            rect.set(0f, top, right, top + barHeight)
            paint.color = colors.of(if (share > 0) expert else -1)
            canvas.drawRoundRect(rect, barHeight / 3, barHeight / 3, paint)
            number.color = colors.onTopOf(if (share > 0) expert else -1)
            canvas.drawText(
                "$expert", barHeight * 0.75f, top + barHeight / 2 - (number.ascent() + number.descent()) / 2, number,
            )
            val baseline = top + barHeight / 2 - (text.ascent() + text.descent()) / 2
            canvas.drawText(percent(share), right + context.dp(8f), baseline, text)
        }
    }
}
