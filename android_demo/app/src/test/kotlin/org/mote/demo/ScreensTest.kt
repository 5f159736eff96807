package org.mote.demo

import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config

@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35], qualifiers = "w380dp-h780dp-xhdpi")
class ScreensTest {
    @get:Rule
    val rule = AppRule()

    @Test
    fun chat() {
        val controller = rule.openChat()
        val activity = controller.get()
        rule.idle()
        Thread.sleep(300)
        rule.idle()
        Screenshot.of(activity).save("chat-empty")
    }
}
