package org.mote.demo.ui

import android.animation.ValueAnimator
import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.util.AttributeSet
import android.view.View
import android.view.animation.LinearInterpolator
import kotlin.math.PI
import kotlin.math.sin
import org.mote.demo.R

/**
 * Three dots that breathe one after the other while there is no text yet. They rest where animations are switched off.
 */
class ThinkingView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    private val paint = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.primary) }
    private val animator = ValueAnimator.ofFloat(0f, 1f).apply {
        duration = PERIOD_MS
        repeatCount = ValueAnimator.INFINITE
        interpolator = LinearInterpolator()
        addUpdateListener { invalidate() }
    }

    override fun onAttachedToWindow() {
        super.onAttachedToWindow()
        update()
    }

    override fun onDetachedFromWindow() {
        animator.cancel()
        super.onDetachedFromWindow()
    }

    override fun onVisibilityChanged(changedView: View, visibility: Int) {
        super.onVisibilityChanged(changedView, visibility)
        update()
    }

    private fun update() {
        if (isAttachedToWindow && isShown) {
            if (!animator.isStarted) animator.start()
        } else {
            animator.cancel()
        }
    }

    override fun onDraw(canvas: Canvas) {
        val phase = animator.animatedValue as? Float ?: 0f
        val radius = height / 6f
        for (dot in 0 until DOTS) {
            val wave = sin(2 * PI * (phase - dot * 0.18)).coerceAtLeast(0.0)
            paint.alpha = (90 + 165 * wave).toInt()
            canvas.drawCircle(
                width * (dot + 0.5f) / DOTS, height / 2f, radius * (0.85f + 0.15f * wave.toFloat()), paint,
            )
        }
    }

    private companion object {
        const val PERIOD_MS = 1200L
        const val DOTS = 3
    }
}
