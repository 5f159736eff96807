package org.mote.demo.ui

import android.app.Activity
import android.os.Build
import android.view.View
import android.view.WindowInsets

/** What bars, cutouts and the keyboard cover at each side of a window, in px. */
class Edges(val left: Int, val top: Int, val right: Int, val bottom: Int)

/** Lets the window reach behind the system's bars on every version; from Android 15 on they all do. */
@Suppress("DEPRECATION")
fun Activity.drawEdgeToEdge() {
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) {
        window.setDecorFitsSystemWindows(false)
    } else {
        window.decorView.systemUiVisibility = window.decorView.systemUiVisibility or
            View.SYSTEM_UI_FLAG_LAYOUT_STABLE or
            View.SYSTEM_UI_FLAG_LAYOUT_FULLSCREEN or
            View.SYSTEM_UI_FLAG_LAYOUT_HIDE_NAVIGATION
    }
}

/**
 * Calls [apply] with what covers this view's window, at once when it is known and after each change, such as of the
 * keyboard.
 */
fun View.onEdges(apply: (Edges) -> Unit) {
    setOnApplyWindowInsetsListener { _, insets ->
        apply(edgesOf(insets))
        insets
    }
    requestApplyInsets()
}

/** Keeps a screen's content clear of the sides and the top, and the end of what scrolls clear of the bottom. */
fun Activity.fitScreen(screen: View, scrolling: View) {
    drawEdgeToEdge()
    val bottom = scrolling.paddingBottom
    screen.onEdges {
        screen.setPadding(it.left, it.top, it.right, 0)
        scrolling.setPadding(scrolling.paddingLeft, scrolling.paddingTop, scrolling.paddingRight, bottom + it.bottom)
    }
}

@Suppress("DEPRECATION")
private fun edgesOf(insets: WindowInsets): Edges {
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) {
        val types = WindowInsets.Type.systemBars() or WindowInsets.Type.displayCutout() or WindowInsets.Type.ime()
        return insets.getInsets(types).run { Edges(left, top, right, bottom) }
    }
    // With adjustResize the keyboard is part of these; a cutout is never larger than the bar on its side, but on the
    // long sides.
    val cutout = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.P) insets.displayCutout else null
    return Edges(
        maxOf(insets.systemWindowInsetLeft, cutout?.safeInsetLeft ?: 0),
        maxOf(insets.systemWindowInsetTop, cutout?.safeInsetTop ?: 0),
        maxOf(insets.systemWindowInsetRight, cutout?.safeInsetRight ?: 0),
        maxOf(insets.systemWindowInsetBottom, cutout?.safeInsetBottom ?: 0),
    )
}
