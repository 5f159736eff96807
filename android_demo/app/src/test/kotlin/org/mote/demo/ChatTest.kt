package org.mote.demo

import android.app.Activity
import android.app.Activity.RESULT_OK
import android.app.AlertDialog
import android.content.Intent
import android.content.ComponentCallbacks2
import android.net.Uri
import android.os.ParcelFileDescriptor
import android.view.View
import android.widget.EditText
import android.widget.ListView
import android.widget.RadioGroup
import android.widget.SeekBar
import android.widget.TextView
import java.awt.image.BufferedImage
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.FileNotFoundException
import java.nio.file.Files
import javax.imageio.ImageIO
import org.json.JSONObject
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.mote.demo.data.Chat
import org.mote.demo.data.ChatStore
import org.mote.demo.data.Turn
import org.mote.demo.data.TurnState
import org.mote.demo.data.isUnfinished
import org.mote.engine.FinishReason
import org.mote.engine.Runtime
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowAlertDialog
import org.robolectric.shadows.ShadowToast

private const val DESCRIBE = "Describe the picture."
private const val SCENE_4 = "5 top left, 5 top right, 4 bottom left, 8 bottom right."

/** The chat from the first start on: the real app, the real model, the real plugin. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35], qualifiers = "w392dp-h800dp-xhdpi")
class ChatTest {
    @get:Rule
    val rule = AppRule()
    private val app get() = rule.app

    private fun begin(chat: Activity, question: String) {
        chat.findViewById<EditText>(R.id.question).setText(question)
        chat.view(R.id.send).performClick()
    }

    private fun ask(chat: Activity, question: String): Turn {
        begin(chat, question)
        rule.waitUntil("the answer") { !app.conversation.isRunning }
        return app.conversation.chat.turns.last()
    }

    private fun choosePicture(name: String) {
        app.settings.picture = name
    }

    /** The last row of the chat, as it is on the screen. */
    private fun Activity.lastRow(): View = findViewById<ListView>(R.id.turns).run {
        rule.idle()
        getChildAt(childCount - 1)
    }

    private fun View.text(id: Int): String =
        findViewById<TextView>(id).takeIf { it.visibility == View.VISIBLE }?.text?.toString().orEmpty()

    @Test
    fun theFirstStartUnpacksTheBundledModelOnce() {
        val folder = File(app.filesDir, "models/digits")
        assertFalse(folder.exists())
        val controller = rule.openChat()
        assertEquals("digits", controller.get().text(R.id.model_name))
        val manifest = File(folder, "mote.json")
        assertArrayEquals(app.assets.open("models/digits/mote.json").use { it.readBytes() }, manifest.readBytes())
        assertFalse("code lies in the app, not beside the model", File(folder, "libmote_ort.so").exists())
        assertEquals(emptyList<String>(), folder.parentFile!!.list()!!.filter(::isUnfinished))
        manifest.setLastModified(1_000_000_000_000)
        controller.pause().stop().start().resume()
        rule.awaitModel()
        assertEquals(1_000_000_000_000, manifest.lastModified())
        manifest.appendText(" ") // as if the app had been updated and brought another model
        controller.pause().stop().start().resume()
        rule.waitUntil("the model is unpacked anew") {
            app.modelLibrary.progress == null && manifest.lastModified() > 1_000_000_000_000
        }
        assertArrayEquals(app.assets.open("models/digits/mote.json").use { it.readBytes() }, manifest.readBytes())
    }

    @Test
    fun onnxRuntimeReadsTheDigits() = readsTheDigits(Runtime.ONNX_RUNTIME)

    @Test
    fun executorchReadsTheDigits() = readsTheDigits(Runtime.EXECUTORCH)

    private fun readsTheDigits(runtime: Runtime) {
        app.settings.modelPath = rule.pushModel("both").path
        app.settings.runtime = runtime
        choosePicture("scene-5.png")
        val chat = rule.openChat().get()
        val answers = listOf("What is the sum of the digits?" to "9+4+2=15", "Which digit is at the top left?" to "9")
        for ((question, answer) in answers) {
            assertEquals(answer, ask(chat, question).answer)
            assertEquals(answer, chat.lastRow().text(R.id.answer_text))
            assertEquals(question, chat.lastRow().text(R.id.question_text))
        }
        choosePicture("scene-4.png")
        assertEquals(SCENE_4, ask(chat, DESCRIBE).answer)
        assertEquals(runtime, (app.loadedModel.state as LoadedModel.State.Ready).session.runtime)
        rule.settle()
        val turn = app.conversation.chat.turns.last()
        val record = JSONObject(app.chats.profile(app.conversation.chat.id, turn.id).readText())
        assertEquals(runtime.id, record.getString("runtime"))
        assertEquals(1, record.getInt("num_images"))
        assertEquals(19, record.getJSONArray("repetitions").getJSONObject(0).getInt("generated_tokens"))
    }

    /** Asks, and runs [action] on the main thread as soon as the first piece of the answer is there. */
    private fun interrupted(chat: Activity, action: () -> Unit): Turn {
        val observer = object : Conversation.Observer {
            var isDue = true

            override fun onChatChanged() = Unit

            override fun onTurnChanged(turn: Turn) {
                if (!isDue || turn.answer.isEmpty()) return
                isDue = false
                action()
            }
        }
        app.conversation.observe(observer)
        begin(chat, DESCRIBE)
        val turn = app.conversation.chat.turns.last()
        rule.waitUntil("the first piece") { !observer.isDue }
        app.conversation.unobserve(observer)
        return turn
    }

    @Test
    fun anAnswerIsStoppedAndTheNextOneComes() {
        choosePicture("scene-4.png")
        val chat = rule.openChat().get()
        fun stopped(): Turn {
            val turn = interrupted(chat) {
                assertEquals(app.getString(R.string.stop), chat.view(R.id.send).contentDescription)
                chat.view(R.id.send).performClick()
            }
            rule.waitUntil("the end") { !app.conversation.isRunning }
            return turn
        }
        // A main thread that the system held up for long enough finds the answer complete.
        val turn = generateSequence(::stopped).take(30).first { it.finishReason != FinishReason.STOP }
        assertEquals(FinishReason.CANCELLED, turn.finishReason)
        assertTrue(turn.answer, SCENE_4.startsWith(turn.answer) && turn.answer.length < SCENE_4.length)
        assertEquals(app.getString(R.string.answer_stopped), chat.lastRow().text(R.id.answer_note))
        assertEquals(SCENE_4, ask(chat, DESCRIBE).answer)
    }

    @Test
    fun aRunningAnswerAndWhatIsTypedSurviveRotation() {
        choosePicture("scene-4.png")
        val controller = rule.openChat()
        val first = controller.get()
        val session = (app.loadedModel.state as LoadedModel.State.Ready).session
        val turn = interrupted(controller.get()) {
            first.findViewById<EditText>(R.id.question).setText("And now?")
            RuntimeEnvironment.setQualifiers("+land")
            controller.configurationChange(app.resources.configuration)
        }
        assertTrue("the screen was made anew", controller.get() !== first)
        val rotated = controller.get()
        controller.visible()
        assertEquals("And now?", rotated.findViewById<EditText>(R.id.question).text.toString())
        rule.waitUntil("the end") { !app.conversation.isRunning }
        assertEquals(SCENE_4, turn.answer)
        assertEquals(SCENE_4, rotated.lastRow().text(R.id.answer_text))
        assertEquals("the model stays open", session, (app.loadedModel.state as LoadedModel.State.Ready).session)
    }

    @Test
    fun chatsSurviveTheProcess() {
        choosePicture("scene-5.png")
        val chat = rule.openChat().get()
        ask(chat, "What is the sum of the digits?")
        val id = app.conversation.chat.id
        rule.settle()
        val store = ChatStore(File(app.filesDir, "chats"))
        val reborn = app.run { Conversation(store, pictures, settings, loadedModel, io, main, version) }
        reborn.restore()
        rule.waitUntil("the chat is back") { reborn.chat.turns.isNotEmpty() }
        val turn = reborn.chat.turns.single()
        assertEquals(id, reborn.chat.id)
        assertEquals("9+4+2=15", turn.answer)
        assertEquals(TurnState.DONE, turn.state)
        val kept = app.chats.picture(id, turn.picture!!)
        assertArrayEquals(File(repository, "examples/digits_vqa/images/scene-5.png").readBytes(), kept.readBytes())
    }

    @Test
    fun whatWasCutOffWithTheProcessSaysSo() {
        val cut = Chat("chat-1", 1).apply { add(DESCRIBE).apply { state = TurnState.RUNNING; answer = "5 top" } }
        app.chats.save(cut.id, cut.toJson().toString())
        app.settings.chat = cut.id
        val chat = rule.openChat().get()
        rule.waitUntil("the chat is back") { app.conversation.chat.turns.isNotEmpty() }
        assertEquals("5 top", chat.lastRow().text(R.id.answer_text))
        assertEquals(app.getString(R.string.answer_interrupted), chat.lastRow().text(R.id.answer_note))
        assertFalse(app.conversation.isRunning)
    }

    @Test
    fun aChatIsFoundInTheListAndDeleted() {
        File(app.filesDir, "chats/chat-7").mkdirs()
        File(app.filesDir, "chats/chat-7/chat.json").writeText("{broken")
        val chat = rule.openChat().get()
        ask(chat, "Which digit is at the top left?")
        val id = app.conversation.chat.id
        app.conversation.startNew()
        rule.settle()
        val history = rule.open(HistoryActivity::class.java).get()
        rule.settle()
        val list = history.findViewById<ListView>(R.id.list)
        assertEquals("the broken one is left out", 1, list.childCount)
        list.getChildAt(0).findViewById<View>(R.id.card).performClick()
        rule.waitUntil("the chat is open") { app.conversation.chat.id == id }
        assertTrue(history.isFinishing)
        list.getChildAt(0).findViewById<View>(R.id.delete).performClick()
        ShadowAlertDialog.getLatestAlertDialog().getButton(AlertDialog.BUTTON_POSITIVE).performClick()
        rule.settle()
        assertFalse(File(app.filesDir, "chats/$id").exists())
        assertTrue("the chat that was shown is gone", app.conversation.chat.turns.isEmpty())
        assertEquals(View.VISIBLE, history.view(R.id.empty).visibility)
    }

    @Test
    fun aDamagedModelSaysWhatIsWrong() {
        val folder = rule.pushModel("damaged")
        File(folder, "onnx/model.onnx.data").let { data -> // of the right size, so that only its sum tells
            data.writeBytes(data.readBytes().also { it[1000] = (it[1000] + 1).toByte() })
        }
        app.settings.modelPath = folder.path
        val chat = rule.open(ChatActivity::class.java).get()
        rule.waitUntil("it failed") { app.loadedModel.state is LoadedModel.State.Failed }
        assertEquals(app.getString(R.string.model_failed), chat.text(R.id.model_state))
        val turn = ask(chat, DESCRIBE)
        assertEquals(TurnState.FAILED, turn.state)
        assertTrue(turn.error, "model.onnx.data" in turn.error!! && "SHA-256" in turn.error!!)
        assertEquals(turn.error, chat.lastRow().text(R.id.answer_text))
        rule.settle()
        Screenshot.of(chat).save("chat-error")
        val models = rule.open(ModelsActivity::class.java).get()
        val texts = models.findViewById<View>(android.R.id.content).all().filterIsInstance<TextView>()
        assertTrue(texts.any { it.text.toString() == turn.error })
    }

    @Test
    fun aMissingPluginSaysWhichLibraryIsMissing() {
        val folder = File(app.cacheDir, "libraries").apply { mkdirs() }
        val native = File(System.getProperty("mote.native.dir")!!)
        Files.createSymbolicLink(
            File(folder, "libmote_jni.so").toPath(), File(native, "libmote_jni.so").toPath(),
        )
        rule.useLibraries(folder)
        val chat = rule.open(ChatActivity::class.java).get()
        rule.waitUntil("it failed") {
            app.loadedModel.state is LoadedModel.State.Failed && app.modelLibrary.progress == null
        }
        val turn = ask(chat, DESCRIBE)
        assertTrue(turn.error, "libmote_ort.so is not in $folder" in turn.error!!)
        val settings = rule.open(SettingsActivity::class.java).get()
        val choices = settings.findViewById<RadioGroup>(R.id.runtimes)
        assertEquals(listOf(true, false, false), (0 until 3).map { choices.getChildAt(it).isEnabled })
    }

    private fun deliver(chat: Activity, bytes: ByteArray) {
        val uri = Uri.parse("content://pictures/1")
        shadowOf(app.contentResolver).registerInputStreamSupplier(uri) { bytes.inputStream() }
        val gallery = app.getString(R.string.pick_picture)
        chat.view(R.id.pictures).all().first { it.contentDescription == gallery }.performClick()
        val request = shadowOf(chat).nextStartedActivityForResult
        shadowOf(chat).receiveResult(request.intent, RESULT_OK, Intent().setData(uri))
        rule.settle()
    }

    @Test
    fun aPictureOfOnesOwnIsAskedAbout() {
        choosePicture("scene-0.png")
        val chat = rule.openChat().get()
        deliver(chat, File(repository, "examples/digits_vqa/images/scene-4.png").readBytes())
        assertEquals(SCENE_4, ask(chat, DESCRIBE).answer)
        assertNull(ShadowToast.getLatestToast())
    }

    @Test
    fun aPhotoIsTakenAndAskedAbout() {
        val chat = rule.openChat().get()
        val camera = app.getString(R.string.take_photo)
        chat.view(R.id.pictures).all().first { it.contentDescription == camera }.performClick()
        val request = shadowOf(chat).nextStartedActivityForResult
        val place = request.intent.clipData!!.getItemAt(0).uri
        assertTrue(request.intent.flags and Intent.FLAG_GRANT_WRITE_URI_PERMISSION != 0)
        val provider = Robolectric.buildContentProvider(SharedFilesProvider::class.java)
            .create(SharedFilesProvider.AUTHORITY).get()
        ParcelFileDescriptor.AutoCloseOutputStream(provider.openFile(place, "w")).use {
            it.write(File(repository, "examples/digits_vqa/images/scene-4.png").readBytes())
        }
        shadowOf(chat).receiveResult(request.intent, RESULT_OK, Intent())
        rule.settle()
        assertEquals(SCENE_4, ask(chat, DESCRIBE).answer)
    }

    @Test
    fun whatIsNoPictureSaysSoAndChangesNothing() {
        choosePicture("scene-5.png")
        val chat = rule.openChat().get()
        deliver(chat, "no picture".toByteArray())
        assertTrue(ShadowToast.getTextOfLatestToast(), "no picture" in ShadowToast.getTextOfLatestToast())
        deliver(chat, File(repository, "examples/digits_vqa/images/scene-4.png").readBytes().copyOf(2000))
        assertTrue(ShadowToast.getTextOfLatestToast(), "cut short" in ShadowToast.getTextOfLatestToast())
        assertEquals("9+4+2=15", ask(chat, "What is the sum of the digits?").answer)
    }

    /** The heap is full but for less than the picture takes, so an allocation of nearly 200 MB is refused for real. */
    @Test
    fun outOfMemoryIsASentenceAndTheNextQuestionIsAnswered() {
        choosePicture("scene-5.png")
        val chat = rule.openChat().get()
        val white = BufferedImage(8000, 8000, BufferedImage.TYPE_BYTE_BINARY)
        val picture = ByteArrayOutputStream().also { ImageIO.write(white, "png", it) }.toByteArray()
        val ballast = ArrayList<ByteArray>()
        try {
            while (true) ballast += ByteArray(32 shl 20)
        } catch (_: OutOfMemoryError) {
            repeat(3) { ballast.removeAt(ballast.lastIndex) }
        }
        try {
            deliver(chat, picture)
        } finally {
            ballast.clear()
        }
        assertTrue(ShadowToast.getTextOfLatestToast(), "not enough memory" in ShadowToast.getTextOfLatestToast())
        assertEquals("9+4+2=15", ask(chat, "What is the sum of the digits?").answer)
    }

    @Test
    fun settingsTakeEffectWithTheNextQuestion() {
        app.settings.modelPath = rule.pushModel("both").path
        choosePicture("scene-4.png")
        val chat = rule.openChat().get()
        assertEquals(SCENE_4, ask(chat, DESCRIBE).answer)
        val settings = rule.open(SettingsActivity::class.java).get()
        settings.findViewById<RadioGroup>(R.id.runtimes).run { check(getChildAt(2).id) }
        fun slide(card: Int, position: Int) {
            settings.findViewById<View>(card).findViewById<SeekBar>(R.id.slider).progress = position
        }
        slide(R.id.threads, 1)
        slide(R.id.max_new_tokens, 0)
        val short = ask(chat, DESCRIBE)
        assertEquals(FinishReason.LENGTH, short.finishReason)
        assertTrue(short.answer, SCENE_4.startsWith(short.answer))
        assertEquals(app.getString(R.string.answer_length), chat.lastRow().text(R.id.answer_note))
        rule.settle()
        val record = JSONObject(app.chats.profile(app.conversation.chat.id, short.id).readText())
        assertEquals("executorch", record.getString("runtime"))
        assertEquals(1, record.getInt("threads"))
        assertEquals(8, record.getJSONArray("repetitions").getJSONObject(0).getInt("generated_tokens"))
        slide(R.id.temperature, 20)
        assertTrue("a high temperature makes answers vary", (1..5).map { ask(chat, DESCRIBE).answer }.toSet().size > 1)
        settings.view(R.id.reset).performClick()
        assertEquals(SCENE_4, ask(chat, DESCRIBE).answer)
        assertEquals(
            app.getString(R.string.threads_automatic), settings.findViewById<View>(R.id.threads).text(R.id.value),
        )
    }

    @Test
    fun memoryIsGivenBackWhenTheSystemAsks() {
        choosePicture("scene-5.png")
        val chat = rule.openChat().get()
        app.onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_BACKGROUND)
        assertEquals("9+4+2=15", ask(chat, "What is the sum of the digits?").answer)
    }

    @Test
    fun theProfileIsSharedWithOneReceiver() {
        choosePicture("scene-5.png")
        val chat = rule.openChat().get()
        val turn = ask(chat, "What is the sum of the digits?")
        chat.lastRow().findViewById<View>(R.id.details).performClick()
        val details = rule.open(DetailsActivity::class.java, shadowOf(chat).nextStartedActivity).get()
        rule.waitUntil("details") { details.view(R.id.action).visibility == View.VISIBLE }
        details.view(R.id.action).performClick()
        rule.settle()
        val chooser = shadowOf(details).nextStartedActivity
        @Suppress("DEPRECATION") val send = chooser.getParcelableExtra<Intent>(Intent.EXTRA_INTENT)!!
        assertEquals("application/json", send.type)
        assertTrue(send.flags and Intent.FLAG_GRANT_READ_URI_PERMISSION != 0)
        val uri = send.clipData!!.getItemAt(0).uri
        val provider = Robolectric.buildContentProvider(SharedFilesProvider::class.java)
            .create(SharedFilesProvider.AUTHORITY).get()
        val shared =
            ParcelFileDescriptor.AutoCloseInputStream(provider.openFile(uri, "r")).use { it.readBytes() }
        assertArrayEquals(app.chats.profile(app.conversation.chat.id, turn.id).readBytes(), shared)
        for (path in listOf("share/..%2F..%2Ffiles", "files/x", "share", "share/a/b", "share/.hidden")) {
            val outside = Uri.parse("content://${SharedFilesProvider.AUTHORITY}/$path")
            assertThrows(path, FileNotFoundException::class.java) { provider.openFile(outside, "r") }
        }
        assertThrows(FileNotFoundException::class.java) { provider.openFile(uri, "rw") }
    }
}
