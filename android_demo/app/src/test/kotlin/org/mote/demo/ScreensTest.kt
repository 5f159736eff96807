package org.mote.demo

import android.app.Activity
import android.graphics.Insets
import android.graphics.Rect
import android.view.View
import android.view.WindowInsets
import android.view.accessibility.AccessibilityNodeInfo
import android.widget.AbsListView
import android.widget.EditText
import android.widget.HorizontalScrollView
import android.widget.ListView
import android.widget.ScrollView
import android.widget.TextView
import java.io.File
import java.util.concurrent.CompletableFuture
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.mote.demo.data.ExpertMap
import org.mote.demo.data.Turn
import org.mote.demo.ui.ExpertColors
import org.mote.demo.ui.ExpertGridView
import org.mote.demo.ui.dp
import org.mote.engine.Answer
import org.mote.engine.BitmapImages
import org.mote.engine.ExpertChoices
import org.mote.engine.GenerationListener
import org.mote.engine.GenerationRequest
import org.mote.engine.MoteException
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config
import org.robolectric.shadows.showSystemBars

private const val STATUS_BAR_DP = 24
private const val NAVIGATION_BAR_DP = 48

/**
 * Every screen, light and dark, upright and on its side, in both languages: drawn, kept as a picture, and looked at in
 * places.
 */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35], qualifiers = "w392dp-h800dp-xhdpi")
class ScreensTest {
    @get:Rule
    val rule = AppRule()
    private val app get() = rule.app

    @Test
    fun light() = allScreens("light")

    @Test
    fun dark() {
        RuntimeEnvironment.setQualifiers("+night")
        allScreens("dark")
    }

    @Test
    fun largeText() {
        RuntimeEnvironment.setFontScale(1.5f)
        showSystemBars()
        val chat = rule.openChat().get()
        shoot(chat, "chat-empty-large-text")
        ask(chat, "What is the sum of the digits?")
        val turn = ask(chat, "Describe the picture.")
        shoot(chat, "chat-large-text")
        val details = openDetails(chat, turn)
        shoot(details, "experts-large-text")
        details.view(R.id.tab_performance).performClick()
        shoot(details, "performance-large-text")
    }

    @Test
    fun landscape() {
        RuntimeEnvironment.setQualifiers("+land")
        showSystemBars()
        val chat = rule.openChat().get()
        shoot(chat, "chat-empty-land")
        ask(chat, "Describe the picture.")
        val shot = shoot(chat, "chat-land")
        checkBubbles(chat, shot) // of which the answer's is in view
    }

    @Test
    fun chinese() {
        RuntimeEnvironment.setQualifiers("+zh-rCN")
        showSystemBars()
        val chat = rule.openChat().get()
        assertEquals("就一张图片提问", chat.view(R.id.empty).all().filterIsInstance<TextView>().first().text.toString())
        shoot(chat, "chat-empty-zh")
        val turn = ask(chat, "Describe the picture.")
        val details = openDetails(chat, turn)
        assertTrue(details.text(R.id.cell_text), "第 31 个词元" in details.text(R.id.cell_text))
        shoot(details, "experts-zh")
    }

    /** The keyboard takes its place from the chat, not from what is typed. */
    @Test
    fun theKeyboardCoversNothing() {
        val chat = rule.openChat().get()
        val keyboard = chat.dp(280)
        val insets = WindowInsets.Builder()
            .setInsets(WindowInsets.Type.statusBars(), Insets.of(0, chat.dp(24), 0, 0))
            .setInsets(WindowInsets.Type.displayCutout(), Insets.of(chat.dp(30), 0, 0, 0))
            .setInsets(WindowInsets.Type.ime(), Insets.of(0, 0, 0, keyboard))
            .build()
        val screen = chat.view(R.id.screen)
        screen.dispatchApplyWindowInsets(insets)
        val size = { length: Int -> View.MeasureSpec.makeMeasureSpec(length, View.MeasureSpec.EXACTLY) }
        screen.measure(size(screen.width), size(screen.height))
        screen.layout(0, 0, screen.width, screen.height)
        assertTrue(chat.view(R.id.composer).run { bottom <= screen.height - keyboard && top > 0 })
        assertTrue(chat.view(R.id.header).run { top >= chat.dp(24) && left >= chat.dp(30) })
    }

    private fun allScreens(theme: String) {
        showSystemBars()
        val chat = rule.openChat().get()
        shoot(chat, "chat-empty-$theme")
        ask(chat, "What is the sum of the digits?")
        val turn = ask(chat, "Describe the picture.")
        checkBubbles(chat, shoot(chat, "chat-$theme"))
        val details = openDetails(chat, turn)
        checkGrid(details, shoot(details, "experts-$theme"))
        details.view(R.id.tab_performance).performClick()
        shoot(details, "performance-$theme")
        rule.pushModel("digits-all")
        File(app.models.pushedFolder, "damaged/mote.json").apply { parentFile!!.mkdirs() }.writeText("{}")
        val models = rule.open(ModelsActivity::class.java).get()
        rule.waitUntil("models") { app.modelLibrary.models.orEmpty().size == 3 }
        shoot(models, "models-$theme")
        shoot(rule.open(SettingsActivity::class.java).get(), "settings-$theme")
        shoot(rule.open(HistoryActivity::class.java).get(), "history-$theme")
    }

    private fun ask(chat: Activity, question: String): Turn {
        chat.findViewById<EditText>(R.id.question).setText(question)
        chat.view(R.id.send).performClick()
        rule.waitUntil("the answer") { !app.conversation.isRunning }
        return app.conversation.chat.turns.last()
    }

    private fun openDetails(chat: Activity, turn: Turn): DetailsActivity {
        val details =
            rule.open(DetailsActivity::class.java, DetailsActivity.intent(chat, app.conversation.chat.id, turn)).get()
        rule.waitUntil("details") { details.view(R.id.panel_experts).visibility == View.VISIBLE }
        return details
    }

    private fun shoot(activity: Activity, name: String): Screenshot {
        rule.settle()
        val shot = Screenshot.of(activity)
        shot.save(name)
        checkBars(activity, shot)
        checkTouch(activity)
        return shot
    }

    /**
     * Behind the status bar there is nothing but the background, and what does not scroll ends above the navigation
     * bar.
     */
    private fun checkBars(activity: Activity, shot: Screenshot) {
        val background = activity.getColor(R.color.background)
        shot.assertAll("the status bar", Rect(0, 0, shot.width, activity.dp(STATUS_BAR_DP)), background)
        val bottom = shot.height - activity.dp(NAVIGATION_BAR_DP)
        if (activity is ChatActivity) {
            shot.assertAll("the navigation bar", Rect(0, bottom, shot.width, shot.height), background)
        }
        for (view in activity.window.decorView.all()) {
            if (view !is TextView || !view.isShown || view.text.isEmpty()) continue
            val place = view.place()
            if (!place.intersect(0, 0, shot.width, shot.height)) continue // scrolled out of sight
            assertTrue("${view.text} begins at ${place.top}", place.top >= activity.dp(STATUS_BAR_DP))
            if (!isInScroll(view)) assertTrue("${view.text} ends at ${place.bottom}", place.bottom <= bottom)
            val paint = view.currentTextColor
            if (view.width == place.width() && view.height == place.height() && view.text.isNotBlank()) {
                assertTrue("${view.text} is drawn", shot.share(place, paint) > 0.0)
            }
        }
    }

    private fun isInScroll(view: View): Boolean = generateSequence(view.parent) { it.parent }
        .any { it is AbsListView || it is ScrollView || it is HorizontalScrollView }

    /** Whatever can be touched is large enough for a finger, and has a name for TalkBack. */
    private fun checkTouch(activity: Activity) {
        val least = activity.dp(48)
        for (view in activity.findViewById<View>(android.R.id.content).all()) {
            if (!view.isClickable || !view.isShown || view.width == 0) continue
            val name = view.contentDescription
                ?: (view as? TextView)?.text?.ifEmpty { view.hint }
                ?: view.all().filterIsInstance<TextView>().firstOrNull()?.text
            assertTrue("${view.javaClass.simpleName} in $activity has no name", !name.isNullOrBlank())
            val isText = view is TextView && view.isTextSelectable
            if (!isText) {
                assertTrue("$name is ${view.width} x ${view.height}", view.width >= least && view.height >= least)
            }
        }
    }

    /** The bubbles have their colors, beside the text and where their corners are not. */
    private fun checkBubbles(chat: Activity, shot: Screenshot) {
        val list = chat.findViewById<ListView>(R.id.turns)
        val row = list.getChildAt(list.childCount - 1)
        for ((id, color) in listOf(R.id.question_text to R.color.question, R.id.answer to R.color.answer)) {
            val place = row.findViewById<View>(id).place()
            val edge = Rect(place.left + chat.dp(4), place.centerY() - 4, place.left + chat.dp(12), place.centerY() + 4)
            shot.assertAll("a bubble", edge, chat.getColor(color))
            assertTrue(Screenshot.isNear(shot.color(place.right - 1, place.top), chat.getColor(R.color.background)))
        }
    }

    /** What the grid shows is what the engine says when it is asked itself. */
    private fun checkGrid(details: Activity, shot: Screenshot) {
        val choices = choices("Describe the picture.")
        val grid = details.findViewById<ExpertGridView>(R.id.grid)
        val colors = ExpertColors(details)
        val seen = details.findViewById<HorizontalScrollView>(R.id.grid_scroll).place()
        val origin = IntArray(2).also(grid::getLocationInWindow)
        var checked = 0
        val shown = HashSet<Int>()
        for (layer in choices.layers.indices) {
            for (token in choices.tokens.indices) {
                // Left of the number, and clear of the ring of a marked field.
                val x = origin[0] + token * grid.pitch + details.dp(7)
                val y = origin[1] + grid.headHeight + layer * grid.pitch + grid.pitch / 2
                if (!seen.contains(x, y)) continue
                val expert = choices.expert(layer, token)
                assertTrue("layer $layer, token $token", Screenshot.isNear(colors.of(expert), shot.color(x, y)))
                shown += expert
                checked++
            }
        }
        assertTrue("$checked fields of ${shown.size} experts", checked >= 4 * 8 && shown.size == 4)
        checkNodes(grid, choices)
    }

    private fun choices(question: String): ExpertChoices {
        val session = (app.loadedModel.state as LoadedModel.State.Ready).session
        val picture = BitmapImages.decode { app.pictures.open(app.pictures.find(app.settings.picture)) }
        val end = CompletableFuture<Answer>()
        session.generate(GenerationRequest(question, picture, recordExperts = true), object : GenerationListener {
            override fun onText(piece: String) = Unit

            override fun onFinished(answer: Answer) {
                end.complete(answer)
            }

            override fun onFailed(error: MoteException) {
                end.completeExceptionally(error)
            }
        })
        return end.get().experts!!
    }

    /** TalkBack finds an element for each token that names its experts, and a click on it marks the token. */
    private fun checkNodes(grid: ExpertGridView, choices: ExpertChoices) {
        val provider = grid.accessibilityNodeProvider
        val last = choices.tokens.size - 1
        val node = checkNotNull(provider.createAccessibilityNodeInfo(last))
        for ((index, layer) in choices.layers.withIndex()) {
            val words = node.contentDescription.toString()
            assertTrue(words, "Layer $layer: expert ${choices.expert(index, last)}." in words)
        }
        assertEquals(choices.tokens.size, checkNotNull(provider.createAccessibilityNodeInfo(View.NO_ID)).childCount)
        val before = grid.selected
        assertTrue(provider.performAction(last, AccessibilityNodeInfo.ACTION_CLICK, null))
        assertEquals(0 to last, grid.selected)
        grid.selected = before
        assertEquals(ExpertMap.of(choices).toJson(), ExpertMap.fromJson(ExpertMap.of(choices).toJson()).toJson())
    }
}
