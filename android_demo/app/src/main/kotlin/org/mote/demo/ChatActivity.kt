package org.mote.demo

import android.app.Activity
import android.content.ActivityNotFoundException
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.view.inputmethod.EditorInfo
import android.view.inputmethod.InputMethodManager
import android.widget.EditText
import android.widget.ImageButton
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.ListView
import android.widget.TextView
import android.widget.Toast
import org.mote.demo.data.Turn
import org.mote.demo.ui.dp
import org.mote.demo.ui.drawEdgeToEdge
import org.mote.demo.ui.isShown
import org.mote.demo.ui.onEdges
import org.mote.demo.ui.roundCorners

/**
 * Ask about a picture and watch the answer come. What it shows lives in [DemoApplication]; it keeps only what is typed.
 */
class ChatActivity : Activity(), Conversation.Observer {
    private val application by lazy { DemoApplication.of(this) }
    private val conversation get() = application.conversation
    private val library get() = application.modelLibrary

    private lateinit var list: ListView
    private lateinit var question: EditText
    private lateinit var strip: PictureStrip
    private val adapter by lazy { TurnAdapter(application, ::openDetails) }
    private val onModelState = { _: LoadedModel.State -> showModel() }
    private val onModels = ::onModelsChanged
    private val onPicture = { problem: String? -> problem?.let(::say) ?: showPictures() }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_chat)
        drawEdgeToEdge()
        val screen = findViewById<View>(R.id.screen)
        screen.onEdges { screen.setPadding(it.left, it.top, it.right, it.bottom) }
        list = findViewById(R.id.turns)
        list.adapter = adapter
        question = findViewById(R.id.question)
        question.setOnEditorActionListener { _, action, _ ->
            (action == EditorInfo.IME_ACTION_SEND).also { if (it) ask(question.text.toString()) }
        }
        strip = PictureStrip(
            findViewById(R.id.pictures),
            application.pictures,
            application.thumbnails,
            ::openCamera,
            ::openGallery,
            application.pictureChoice::choose,
        )
        findViewById<View>(R.id.preview).roundCorners(28f)
        findViewById<View>(R.id.send).setOnClickListener {
            if (conversation.isRunning) conversation.stop() else ask(question.text.toString())
        }
        findViewById<View>(R.id.model).setOnClickListener { start(ModelsActivity::class.java) }
        findViewById<View>(R.id.new_chat).setOnClickListener { conversation.startNew() }
        findViewById<View>(R.id.history).setOnClickListener { start(HistoryActivity::class.java) }
        findViewById<View>(R.id.settings).setOnClickListener { start(SettingsActivity::class.java) }
        showSuggestions()
        if (conversation.chat.turns.isEmpty()) conversation.restore()
    }

    override fun onStart() {
        super.onStart()
        conversation.observe(this)
        application.loadedModel.observe(onModelState)
        library.observe(onModels)
        application.pictureChoice.observe(onPicture)
        library.refresh()
        showPictures()
        onChatChanged()
        showModel()
    }

    override fun onStop() {
        conversation.unobserve(this)
        application.loadedModel.unobserve(onModelState)
        library.unobserve(onModels)
        application.pictureChoice.unobserve(onPicture)
        conversation.save()
        super.onStop()
    }

    override fun onChatChanged() {
        adapter.chat = conversation.chat
        findViewById<View>(R.id.empty).isShown(conversation.chat.turns.isEmpty())
        list.isShown(conversation.chat.turns.isNotEmpty())
        showEnd()
        showSend()
    }

    override fun onTurnChanged(turn: Turn) {
        val isAtEnd = !list.canScrollVertically(1)
        adapter.update(list, turn)
        if (isAtEnd) showEnd() // else the reader went back to something, and is left there
        showSend()
    }

    /** Scrolls such that the last row ends where the list ends. */
    private fun showEnd() = list.setSelectionFromTop(adapter.count - 1, -FAR)

    private fun onModelsChanged() {
        val key = library.keyOf(library.current)
        // A running answer belongs to the model that is open.
        if (key != null && !conversation.isRunning) application.loadedModel.require(key)
        showModel()
        showPictures()
        library.takeMessage()?.let(::say)
    }

    private fun ask(text: String) {
        val key = library.keyOf(library.current)
        if (text.isBlank() || conversation.isRunning) return
        if (key == null) {
            return say(library.current?.problem ?: getString(R.string.choose_model))
        }
        application.loadedModel.require(key)
        conversation.ask(text.trim(), application.pictureChoice.current.takeIf { takesPictures() })
        question.setText("")
        getSystemService(InputMethodManager::class.java).hideSoftInputFromWindow(question.windowToken, 0)
    }

    /** Whether the model wants a picture; until one is known, as the demo model. */
    private fun takesPictures(): Boolean = library.current?.manifest?.let { it.image != null } ?: true

    private fun showPictures() {
        val shown = takesPictures()
        findViewById<View>(R.id.pictures).isShown(shown)
        findViewById<View>(R.id.preview).isShown(shown)
        findViewById<TextView>(R.id.empty_text).setText(if (shown) R.string.empty_text else R.string.empty_text_text)
        question.setHint(if (shown) R.string.question_hint else R.string.question_hint_text)
        if (!shown) return
        val picture = application.pictureChoice.current
        strip.show(picture)
        val preview = findViewById<ImageView>(R.id.preview)
        application.thumbnails.show(preview, picture, dp(176), application.pictures)
    }

    private fun showSuggestions() {
        val suggestions = findViewById<LinearLayout>(R.id.suggestions)
        for (text in resources.getStringArray(R.array.suggestions)) {
            val view = layoutInflater.inflate(R.layout.suggestion, suggestions, false) as TextView
            view.text = text
            view.setOnClickListener { ask(text) }
            suggestions.addView(view)
        }
    }

    private fun showSend() {
        val send = findViewById<ImageButton>(R.id.send)
        send.setImageResource(if (conversation.isRunning) R.drawable.ic_stop else R.drawable.ic_send)
        send.contentDescription = getString(if (conversation.isRunning) R.string.stop else R.string.send)
    }

    private fun showModel() {
        val model = library.current
        val name = model?.name ?: getString(R.string.no_model)
        val state = modelState()
        findViewById<TextView>(R.id.model_name).text = name
        findViewById<TextView>(R.id.model_state).text = state
        findViewById<View>(R.id.model).contentDescription = getString(R.string.model_description, name, state)
    }

    private fun modelState(): String {
        val model = library.current
        if (model == null) {
            library.progress?.let { return getString(R.string.model_installing, it.bytes * 100 / it.total) }
            return getString(if (library.models == null) R.string.model_loading else R.string.choose_model)
        }
        model.problem?.let { return it }
        return when (val state = application.loadedModel.state) {
            is LoadedModel.State.Opening, LoadedModel.State.Closed -> getString(R.string.model_loading)
            is LoadedModel.State.Failed -> getString(R.string.model_failed)
            is LoadedModel.State.Ready ->
                getString(R.string.model_ready, nameOf(state.session.runtime), duration(state.session.loadMs))
        }
    }

    private fun openGallery() = startForPicture(PictureIntents.gallery(), PictureIntents.GALLERY, R.string.no_gallery)

    private fun openCamera() = startForPicture(PictureIntents.camera(this), PictureIntents.CAMERA, R.string.no_camera)

    private fun startForPicture(intent: Intent, request: Int, missing: Int) = try {
        startActivityForResult(intent, request)
    } catch (_: ActivityNotFoundException) {
        say(getString(missing))
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        if (resultCode != RESULT_OK) return
        when (requestCode) {
            PictureIntents.CAMERA -> application.pictureChoice.takeIn(PictureIntents.photo(this)::inputStream)
            PictureIntents.GALLERY -> {
                val uri = PictureIntents.chosen(data) ?: return
                val resolver = applicationContext.contentResolver // which outlives this screen
                application.pictureChoice.takeIn { resolver.openInputStream(uri) }
            }
        }
    }

    private fun openDetails(turn: Turn) = startActivity(DetailsActivity.intent(this, conversation.chat.id, turn))

    private fun say(sentence: String) = Toast.makeText(this, sentence, Toast.LENGTH_LONG).show()

    private fun start(screen: Class<out Activity>) = startActivity(Intent(this, screen))

    private companion object {
        /** Px above the list; further than any row is high. */
        const val FAR = 1 shl 20
    }
}
