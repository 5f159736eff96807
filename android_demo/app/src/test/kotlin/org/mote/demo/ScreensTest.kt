package org.mote.demo

import android.app.Activity
import android.view.View
import android.widget.EditText
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.mote.demo.data.Turn
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config
import org.robolectric.shadows.showSystemBars

/** Every screen, light and dark, upright and on its side, in both languages: drawn, kept as a picture, and looked at in places. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35], qualifiers = "w392dp-h800dp-xhdpi")
class ScreensTest {
    @get:Rule
    val rule = AppRule()

    @Test
    fun light() = allScreens("light")

    @Test
    fun dark() {
        RuntimeEnvironment.setQualifiers("+night")
        allScreens("dark")
    }

    @Test
    fun landscape() {
        RuntimeEnvironment.setQualifiers("+land")
        showSystemBars()
        val chat = rule.openChat().get()
        shoot(chat, "chat-empty-land")
        ask(chat, "Describe the picture.")
        shoot(chat, "chat-land")
    }

    @Test
    fun chinese() {
        RuntimeEnvironment.setQualifiers("+zh-rCN")
        showSystemBars()
        shoot(rule.openChat().get(), "chat-empty-zh")
    }

    private fun allScreens(theme: String) {
        showSystemBars()
        val chat = rule.openChat().get()
        shoot(chat, "chat-empty-$theme")
        ask(chat, "What is the sum of the digits?")
        ask(chat, "Describe the picture.")
        shoot(chat, "chat-$theme")
        val turn = rule.app.conversation.chat.turns.last()
        val details = rule.open(DetailsActivity::class.java, DetailsActivity.intent(chat, rule.app.conversation.chat.id, turn)).get()
        rule.waitUntil("details") { details.view(R.id.panel_experts).visibility == View.VISIBLE }
        shoot(details, "experts-$theme")
        details.view(R.id.tab_performance).performClick()
        shoot(details, "performance-$theme")
        rule.pushModel("digits-all")
        val models = rule.open(ModelsActivity::class.java).get()
        rule.waitUntil("models") { rule.app.modelLibrary.models.orEmpty().size == 2 }
        shoot(models, "models-$theme")
        shoot(rule.open(SettingsActivity::class.java).get(), "settings-$theme")
        val history = rule.open(HistoryActivity::class.java).get()
        rule.settle()
        shoot(history, "history-$theme")
    }

    private fun ask(chat: Activity, question: String): Turn {
        chat.findViewById<EditText>(R.id.question).setText(question)
        chat.view(R.id.send).performClick()
        rule.waitUntil("the answer") { !rule.app.conversation.isRunning }
        return rule.app.conversation.chat.turns.last()
    }

    private fun shoot(activity: Activity, name: String): Screenshot {
        rule.settle()
        return Screenshot.of(activity).also { it.save(name) }
    }
}
