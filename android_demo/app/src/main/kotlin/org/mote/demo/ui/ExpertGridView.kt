package org.mote.demo.ui

import android.annotation.SuppressLint
import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Rect
import android.graphics.RectF
import android.os.Bundle
import android.text.TextPaint
import android.text.TextUtils
import android.util.AttributeSet
import android.view.GestureDetector
import android.view.MotionEvent
import android.view.View
import android.view.accessibility.AccessibilityEvent
import android.view.accessibility.AccessibilityNodeInfo
import android.view.accessibility.AccessibilityNodeProvider
import org.mote.demo.R
import org.mote.demo.data.ExpertMap
import org.mote.engine.TokenKind

/**
 * Layers down, tokens across: each field has the colour and the number of the expert that the layer chose for the
 * token, the token's text above it, and a band in the colour of where the token comes from. With several experts a
 * token, a field is cut into strips, the first choice on top.
 *
 * A token is one element for TalkBack, which reads its experts and can be clicked.
 */
class ExpertGridView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** Hears of a tap on a field: index of the layer, index of the token. */
    var onCell: (Int, Int) -> Unit = { _, _ -> }

    /** What TalkBack says of a token. */
    var describe: (Int) -> String = { "" }

    /** The field that is marked. */
    var selected: Pair<Int, Int>? = null
        set(value) {
            field = value
            invalidate()
        }

    private var map: ExpertMap? = null
    private var labels: List<String> = emptyList()
    private val colors = ExpertColors(context)
    private val kinds = mapOf(
        TokenKind.TEMPLATE to context.getColor(R.color.token_template),
        TokenKind.IMAGE to context.getColor(R.color.token_image),
        TokenKind.PROMPT to context.getColor(R.color.token_prompt),
        TokenKind.ANSWER to context.getColor(R.color.token_answer),
    )
    private val fill = Paint(Paint.ANTI_ALIAS_FLAG)
    private val ring = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        style = Paint.Style.STROKE
        strokeWidth = context.dp(2.5f)
        color = context.getColor(R.color.text)
    }
    private val number = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        textSize = context.sp(13f)
        textAlign = Paint.Align.CENTER
    }
    private val label = TextPaint(Paint.ANTI_ALIAS_FLAG).apply { textSize = context.sp(13f) }
    private val cell = RectF()
    private val bounds = Rect()
    private val gap = context.dp(2f)
    private val band = context.dp(4f)

    /** Width of a column and height of a row, in px. */
    val pitch: Int = context.dp(34)

    /** Where the first row begins, in px. */
    val headHeight: Int = context.dp(92)

    fun show(map: ExpertMap, labels: List<String>) {
        this.map = map
        val room = headHeight - context.dp(18f)
        this.labels = labels.map { TextUtils.ellipsize(it, label, room, TextUtils.TruncateAt.END).toString() }
        requestLayout()
        invalidate()
    }

    override fun onMeasure(widthMeasureSpec: Int, heightMeasureSpec: Int) {
        val map = map ?: return setMeasuredDimension(0, 0)
        setMeasuredDimension(map.tokens * pitch, headHeight + map.layers.size * pitch)
    }

    /** Only what is visible is drawn: a long prompt has thousands of tokens. */
    override fun onDraw(canvas: Canvas) {
        val map = map ?: return
        canvas.getClipBounds(bounds)
        val first = (bounds.left / pitch).coerceIn(0, map.tokens)
        val last = (bounds.right / pitch).coerceAtMost(map.tokens - 1)
        for (token in first..last) {
            drawLabel(canvas, map, token)
            for (layer in map.layers.indices) drawCell(canvas, map, layer, token)
        }
        selected?.let { (layer, token) ->
            place(layer, token)
            canvas.drawRoundRect(cell, context.dp(7f), context.dp(7f), ring)
        }
    }

    private fun place(layer: Int, token: Int) = cell.set(
        token * pitch + gap,
        headHeight + layer * pitch + gap,
        (token + 1) * pitch - gap,
        headHeight + (layer + 1) * pitch - gap,
    )

    private fun drawLabel(canvas: Canvas, map: ExpertMap, token: Int) {
        val color = kinds.getValue(map.kinds[token])
        fill.color = color
        val isJoined = token + 1 < map.tokens && map.kinds[token + 1] == map.kinds[token]
        val right = (token + 1) * pitch + if (isJoined) gap else -gap
        canvas.drawRect(token * pitch + gap, headHeight - band - gap, right, headHeight - gap, fill)
        label.color =
            context.getColor(if (map.kinds[token] == TokenKind.TEMPLATE) R.color.text_secondary else R.color.text)
        canvas.save()
        canvas.translate((token + 0.5f) * pitch, headHeight - band - context.dp(8f))
        canvas.rotate(-90f)
        canvas.drawText(labels[token], 0f, -(label.ascent() + label.descent()) / 2, label)
        canvas.restore()
    }

    private fun drawCell(canvas: Canvas, map: ExpertMap, layer: Int, token: Int) {
        place(layer, token)
        val radius = context.dp(6f)
        val height = cell.height() / map.topK
        for (rank in 0 until map.topK) {
            val expert = map.expert(layer, token, rank)
            val upper = cell.top + rank * height
            fill.color = colors.of(expert)
            if (map.topK == 1) {
                canvas.drawRoundRect(cell, radius, radius, fill)
            } else {
                canvas.drawRect(cell.left, upper, cell.right, upper + height, fill)
            }
            if (expert < 0) continue
            number.color = colors.onTopOf(expert)
            number.textSize = minOf(context.sp(13f), height * 0.8f)
            canvas.drawText(
                "$expert", cell.centerX(), upper + height / 2 - (number.ascent() + number.descent()) / 2, number,
            )
        }
    }

    /** Layer and token at a place; null beside the fields. */
    private fun cellAt(x: Float, y: Float): Pair<Int, Int>? {
        val map = map ?: return null
        val token = (x / pitch).toInt()
        val layer = ((y - headHeight) / pitch).toInt().coerceAtLeast(0) // the label stands for the first layer
        return if (x >= 0 && token < map.tokens && layer < map.layers.size) layer to token else null
    }

    private fun choose(layer: Int, token: Int) {
        selected = layer to token
        onCell(layer, token)
    }

    private val gestures = GestureDetector(
        context,
        object : GestureDetector.SimpleOnGestureListener() {
            override fun onDown(event: MotionEvent) = true

            override fun onSingleTapUp(event: MotionEvent): Boolean {
                val (layer, token) = cellAt(event.x, event.y) ?: return false
                playSoundEffect(android.view.SoundEffectConstants.CLICK)
                choose(layer, token)
                return true
            }
        },
    )

    @SuppressLint("ClickableViewAccessibility") // the nodes below are what is clicked
    override fun onTouchEvent(event: MotionEvent): Boolean = gestures.onTouchEvent(event) || super.onTouchEvent(event)

    private val nodes = object : AccessibilityNodeProvider() {
        private var focused = NONE

        override fun createAccessibilityNodeInfo(virtualViewId: Int): AccessibilityNodeInfo? {
            val map = map ?: return null
            if (virtualViewId == HOST_VIEW_ID) {
                val info = hostInfo()
                for (token in 0 until map.tokens) info.addChild(this@ExpertGridView, token)
                return info
            }
            return if (virtualViewId in 0 until map.tokens) tokenInfo(virtualViewId) else null
        }

        @Suppress("DEPRECATION") // the constructors that replace obtain are of Android 11
        private fun hostInfo(): AccessibilityNodeInfo =
            AccessibilityNodeInfo.obtain(this@ExpertGridView).also { onInitializeAccessibilityNodeInfo(it) }

        @Suppress("DEPRECATION")
        private fun tokenInfo(token: Int): AccessibilityNodeInfo {
            val info = AccessibilityNodeInfo.obtain(this@ExpertGridView, token)
            info.setParent(this@ExpertGridView)
            info.className = View::class.java.name
            info.packageName = context.packageName
            info.contentDescription = describe(token)
            info.isEnabled = true
            info.isClickable = true
            info.isFocusable = true
            info.isVisibleToUser = isShown
            info.isAccessibilityFocused = focused == token
            info.addAction(AccessibilityNodeInfo.AccessibilityAction.ACTION_CLICK)
            info.addAction(
                if (focused == token) {
                    AccessibilityNodeInfo.AccessibilityAction.ACTION_CLEAR_ACCESSIBILITY_FOCUS
                } else {
                    AccessibilityNodeInfo.AccessibilityAction.ACTION_ACCESSIBILITY_FOCUS
                },
            )
            val column = Rect(token * pitch, 0, (token + 1) * pitch, height)
            info.setBoundsInParent(column)
            val place = IntArray(2).also(::getLocationOnScreen)
            info.setBoundsInScreen(Rect(column).apply { offset(place[0], place[1]) })
            return info
        }

        override fun performAction(virtualViewId: Int, action: Int, arguments: Bundle?): Boolean {
            val map = map ?: return false
            if (virtualViewId !in 0 until map.tokens) return performAccessibilityAction(action, arguments)
            when (action) {
                AccessibilityNodeInfo.ACTION_CLICK -> choose(0, virtualViewId)
                AccessibilityNodeInfo.ACTION_ACCESSIBILITY_FOCUS -> {
                    focused = virtualViewId
                    requestRectangleOnScreen(Rect(virtualViewId * pitch, 0, (virtualViewId + 1) * pitch, height))
                    tell(virtualViewId, AccessibilityEvent.TYPE_VIEW_ACCESSIBILITY_FOCUSED)
                }
                AccessibilityNodeInfo.ACTION_CLEAR_ACCESSIBILITY_FOCUS -> {
                    focused = NONE
                    tell(virtualViewId, AccessibilityEvent.TYPE_VIEW_ACCESSIBILITY_FOCUS_CLEARED)
                }
                else -> return false
            }
            return true
        }

        @Suppress("DEPRECATION")
        private fun tell(token: Int, type: Int) {
            val event = AccessibilityEvent.obtain(type)
            event.setSource(this@ExpertGridView, token)
            event.packageName = context.packageName
            event.className = View::class.java.name
            parent?.requestSendAccessibilityEvent(this@ExpertGridView, event)
            invalidate()
        }
    }

    override fun getAccessibilityNodeProvider(): AccessibilityNodeProvider = nodes

    private companion object {
        const val NONE = Int.MIN_VALUE
    }
}
