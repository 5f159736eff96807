package org.mote.demo.ui

import android.content.Context
import android.graphics.Color
import org.mote.demo.R

/**
 * Colours of experts: eight that are told apart with any colour vision, then again from the first, as each has its
 * number beside it.
 */
internal class ExpertColors(context: Context) {
    private val colors: IntArray = context.resources.obtainTypedArray(R.array.experts).run {
        IntArray(length()) { getColor(it, 0) }.also { recycle() }
    }
    private val unknown = context.getColor(R.color.expert_unknown)

    /** @param expert -1: unknown. */
    fun of(expert: Int): Int = if (expert < 0) unknown else colors[expert % colors.size]

    /** Black or white, whichever reads better on the colour of an expert (WCAG 2's relative luminance). */
    fun onTopOf(expert: Int): Int = if (Color.luminance(of(expert)) > 0.25f) 0xFF14161C.toInt() else Color.WHITE
}
