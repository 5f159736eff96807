package org.mote.demo.ui

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Path
import android.graphics.RectF
import android.util.AttributeSet
import android.view.View
import org.mote.demo.R

/** Where the time of an answer went: a bar whose parts are as long as its stages took, with a legend below. */
class TimelineView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** @property label with its duration, as the legend shows it. */
    class Stage(val label: String, val milliseconds: Double, val color: Int)

    private var stages: List<Stage> = emptyList()
    private val bar = RectF()
    private val outline = Path()
    private val paint = Paint(Paint.ANTI_ALIAS_FLAG)
    private val text = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = context.getColor(R.color.text_secondary)
        textSize = context.sp(13f)
    }
    private val barHeight = context.dp(22f)
    private val gap = context.dp(12f)
    private val dot = context.dp(10f)
    private val lineHeight = text.fontSpacing * 1.25f

    fun show(stages: List<Stage>) {
        this.stages = stages
        contentDescription = stages.joinToString { it.label }
        requestLayout()
        invalidate()
    }

    override fun onMeasure(widthMeasureSpec: Int, heightMeasureSpec: Int) {
        val width = MeasureSpec.getSize(widthMeasureSpec)
        val lines = places(width.toFloat()).lastOrNull()?.second?.plus(1) ?: 0
        setMeasuredDimension(width, (barHeight + gap + lines * lineHeight).toInt())
    }

    /** Left edge and line of each entry of the legend. */
    private fun places(width: Float): List<Pair<Float, Int>> {
        var x = 0f
        var line = 0
        return stages.map { stage ->
            val needed = dot + gap / 2 + text.measureText(stage.label)
            if (x > 0 && x + needed > width) {
                x = 0f
                line++
            }
            (x to line).also { x += needed + gap * 1.5f }
        }
    }

    override fun onDraw(canvas: Canvas) {
        drawBar(canvas)
        places(width.toFloat()).forEachIndexed { index, (x, line) ->
            val top = barHeight + gap + line * lineHeight
            val baseline = top - text.fontMetrics.ascent
            paint.color = stages[index].color
            canvas.drawCircle(
                x + dot / 2, baseline + (text.fontMetrics.ascent + text.fontMetrics.descent) / 2, dot / 2, paint,
            )
            canvas.drawText(stages[index].label, x + dot + gap / 2, baseline, text)
        }
    }

    private fun drawBar(canvas: Canvas) {
        bar.set(0f, 0f, width.toFloat(), barHeight)
        outline.rewind()
        outline.addRoundRect(bar, barHeight / 2, barHeight / 2, Path.Direction.CW)
        canvas.save()
        canvas.clipPath(outline)
        paint.color = context.getColor(R.color.surface_variant)
        canvas.drawRect(bar, paint)
        val total = stages.sumOf { it.milliseconds }.coerceAtLeast(1e-9)
        var left = 0f
        for (stage in stages) {
            val right = left + (width * stage.milliseconds / total).toFloat()
            paint.color = stage.color
            canvas.drawRect(left, 0f, right, barHeight, paint)
            left = right
        }
        canvas.restore()
    }
}
