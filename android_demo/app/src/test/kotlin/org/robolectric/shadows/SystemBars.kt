package org.robolectric.shadows

/**
 * Robolectric's status bar and navigation buttons, whose switches it keeps to its own package. Before a screen is
 * opened.
 */
fun showSystemBars(): Unit =
    SystemUi.systemUiForDefaultDisplay().setBehavior(SystemUi.STANDARD_STATUS_BAR, SystemUi.THREE_BUTTON_NAVIGATION)
