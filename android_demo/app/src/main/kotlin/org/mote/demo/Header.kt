package org.mote.demo

import android.app.Activity
import android.view.View
import android.widget.ImageButton
import android.widget.TextView
import org.mote.demo.ui.isShown

/** Fills `layout/header.xml`: the screen's title, and the way back to where it was opened from. */
internal fun Activity.showHeader(title: Int) {
    setTitle(title) // which TalkBack reads when the screen opens
    findViewById<TextView>(R.id.title).setText(title)
    findViewById<View>(R.id.back).setOnClickListener { finish() }
}

/** The one action of a screen. */
internal fun Activity.showAction(icon: Int, label: Int, action: () -> Unit) {
    val button = findViewById<ImageButton>(R.id.action)
    button.setImageResource(icon)
    button.contentDescription = getString(label)
    button.setOnClickListener { action() }
    button.isShown(true)
}
