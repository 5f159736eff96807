package org.mote.demo

import android.graphics.Typeface
import android.text.SpannableStringBuilder
import android.text.Spanned
import android.text.style.ForegroundColorSpan
import android.view.Gravity
import android.view.View
import android.view.ViewGroup
import android.widget.LinearLayout
import android.widget.TextView
import org.mote.demo.data.ExpertMap
import org.mote.demo.ui.ExpertGridView
import org.mote.demo.ui.ExpertLoadView
import org.mote.demo.ui.dp
import org.mote.engine.TokenKind

/**
 * The experts of one answer, in `layout/panel_experts.xml`: the grid, the field that was tapped, and the load of each
 * layer.
 */
internal class ExpertsPanel(private val panel: View) {
    private val context = panel.context
    private lateinit var map: ExpertMap

    fun show(map: ExpertMap) {
        this.map = map
        panel.findViewById<TextView>(R.id.experts_intro).text =
            context.getString(R.string.experts_intro, map.numExperts, map.topK)
        showGrid()
        showKinds()
        showLoads()
    }

    private fun showGrid() {
        val grid = panel.findViewById<ExpertGridView>(R.id.grid)
        grid.show(map, List(map.tokens, ::label))
        grid.contentDescription = context.getString(R.string.grid_description, map.layers.size, map.tokens, summary())
        grid.describe = ::describe
        grid.onCell = ::showCell
        showLayerNames(grid)
        val last = (map.tokens - 1 downTo 0).firstOrNull { map.kinds[it] == TokenKind.ANSWER && map.expert(0, it) >= 0 }
        if (map.layers.isEmpty() || last == null) {
            panel.findViewById<TextView>(R.id.cell_title).text = ""
            panel.findViewById<TextView>(R.id.cell_text).setText(R.string.cell_none)
            return
        }
        // The beginning of the answer is what one wants to see first.
        val first = map.kinds.indexOf(TokenKind.ANSWER)
        grid.selected = 0 to first
        showCell(0, first)
        val scroll = panel.findViewById<View>(R.id.grid_scroll)
        scroll.post { scroll.scrollTo((first * grid.pitch - scroll.width / 2).coerceAtLeast(0), 0) }
    }

    private fun showLayerNames(grid: ExpertGridView) {
        val names = panel.findViewById<LinearLayout>(R.id.layer_names)
        names.removeAllViews()
        names.setPadding(names.paddingLeft, grid.headHeight, names.paddingRight, 0)
        for (layer in map.layers) {
            val name = TextView(context, null, 0, R.style.Note)
            name.text = context.getString(R.string.layer_short, layer)
            name.gravity = Gravity.CENTER_VERTICAL
            names.addView(name, LinearLayout.LayoutParams(ViewGroup.LayoutParams.WRAP_CONTENT, grid.pitch))
        }
    }

    private fun showKinds() {
        val legend = SpannableStringBuilder()
        for ((kind, color) in KIND_COLORS) {
            if (kind !in map.kinds) continue
            val start = legend.length
            legend.append("▬\u00A0")
            legend.setSpan(
                ForegroundColorSpan(context.getColor(color)), start, legend.length, Spanned.SPAN_EXCLUSIVE_EXCLUSIVE,
            )
            legend.append(nameOf(kind)).append("     ")
        }
        panel.findViewById<TextView>(R.id.kinds).text = legend
    }

    private fun showCell(layerIndex: Int, token: Int) {
        val layer = map.layers[layerIndex]
        panel.findViewById<TextView>(R.id.cell_title).text =
            if (map.kinds[token] == TokenKind.IMAGE) label(token)
            else context.getString(R.string.cell_title, label(token), nameOf(map.kinds[token]))
        val experts = map.experts(layerIndex, token)
        val load = map.load(layerIndex)
        panel.findViewById<TextView>(R.id.cell_text).text = if (experts[0] < 0) {
            context.getString(R.string.cell_unknown, token + 1, layer)
        } else {
            val shares = experts.joinToString { percent(load[it]) }
            context.getString(R.string.cell_text, token + 1, layer, experts.joinToString(), shares)
        }
    }

    private fun showLoads() {
        val loads = panel.findViewById<LinearLayout>(R.id.loads)
        loads.removeAllViews()
        for ((index, layer) in map.layers.withIndex()) {
            val shares = map.load(index)
            val name = TextView(context, null, 0, R.style.Note)
            name.text = context.getString(R.string.layer, layer)
            name.typeface = Typeface.create("sans-serif-medium", Typeface.NORMAL)
            name.setPadding(0, if (index == 0) 0 else context.dp(10), 0, context.dp(4))
            val bars = ExpertLoadView(context)
            bars.show(shares)
            val parts = shares.withIndex().joinToString { (expert, share) ->
                context.getString(R.string.load_part, expert, percent(share))
            }
            bars.contentDescription = context.getString(R.string.load_description, layer, parts)
            loads.addView(name)
            loads.addView(bars)
        }
    }

    /** A token's text as it fits a column; what cannot be seen is spelled out. */
    private fun label(token: Int): String {
        if (map.kinds[token] == TokenKind.IMAGE) return context.getString(R.string.image_token, map.imageNumber(token))
        val text = map.texts[token]
        return when {
            text.isEmpty() -> "…"
            text.isBlank() -> text.replace("\n", "\\n").replace(" ", "␣")
            else -> text.trim().replace("\n", "\\n")
        }
    }

    private fun nameOf(kind: TokenKind): String = context.getString(
        when (kind) {
            TokenKind.TEMPLATE -> R.string.kind_template
            TokenKind.IMAGE -> R.string.kind_image
            TokenKind.PROMPT -> R.string.kind_prompt
            TokenKind.ANSWER -> R.string.kind_answer
        },
    )

    private fun summary(): String = map.layers.withIndex().joinToString(" ") { (index, layer) ->
        val load = map.load(index)
        val busiest = load.indices.maxBy { load[it] }
        context.getString(R.string.grid_layer, layer, busiest, percent(load[busiest]))
    }

    private fun describe(token: Int): String {
        val choices = map.layers.withIndex().joinToString(" ") { (index, layer) ->
            val experts = map.experts(index, token).filter { it >= 0 }
            context.getString(
                R.string.token_layer, layer, experts.joinToString().ifEmpty { context.getString(R.string.unknown) },
            )
        }
        val name = context.getString(R.string.token_description, token + 1, label(token), nameOf(map.kinds[token]))
        return "$name $choices"
    }

    private companion object {
        val KIND_COLORS = listOf(
            TokenKind.TEMPLATE to R.color.token_template,
            TokenKind.IMAGE to R.color.token_image,
            TokenKind.PROMPT to R.color.token_prompt,
            TokenKind.ANSWER to R.color.token_answer,
        )
    }
}
