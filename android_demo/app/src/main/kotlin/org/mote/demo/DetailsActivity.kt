package org.mote.demo

import android.app.Activity
import android.content.ClipData
import android.content.Context
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.widget.TextView
import android.widget.Toast
import java.io.File
import java.io.IOException
import org.json.JSONException
import org.mote.demo.data.AnswerProfile
import org.mote.demo.data.ChatStore
import org.mote.demo.data.ExpertMap
import org.mote.demo.data.Turn
import org.mote.demo.data.readBounded
import org.mote.demo.ui.fitScreen
import org.mote.demo.ui.isShown

/**
 * What an answer cost, and which experts made it: read from what was kept with it, so that old answers have it as well.
 */
class DetailsActivity : Activity() {
    private val application by lazy { DemoApplication.of(this) }
    private var showsExperts = true
    private var profile: AnswerProfile? = null
    private var experts: ExpertMap? = null
    private var isRead = false

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_details)
        showHeader(R.string.details)
        fitScreen(findViewById(R.id.screen), findViewById(R.id.scroll))
        showsExperts = savedInstanceState?.getBoolean(EXPERTS, true) ?: true
        intent.getStringExtra(QUESTION)?.let { findViewById<TextView>(R.id.title).text = it }
        findViewById<View>(R.id.tab_performance).setOnClickListener { choose(experts = false) }
        findViewById<View>(R.id.tab_experts).setOnClickListener { choose(experts = true) }
        showTabs()
        read()
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        outState.putBoolean(EXPERTS, showsExperts)
    }

    private fun choose(experts: Boolean) {
        showsExperts = experts
        showTabs()
    }

    private fun showTabs() {
        for ((id, chosen) in listOf(R.id.tab_experts to showsExperts, R.id.tab_performance to !showsExperts)) {
            val tab = findViewById<TextView>(id)
            tab.setBackgroundResource(if (chosen) R.drawable.pill_selected else 0)
            tab.setTextColor(getColor(if (chosen) R.color.text else R.color.text_secondary))
            tab.isSelected = chosen
        }
        findViewById<View>(R.id.panel_experts).isShown(showsExperts && experts != null)
        findViewById<View>(R.id.panel_performance).isShown(!showsExperts && profile != null)
        val nothing = findViewById<TextView>(R.id.nothing)
        nothing.setText(if (showsExperts) R.string.no_experts else R.string.no_details)
        nothing.isShown(isRead && (if (showsExperts) experts else profile) == null)
    }

    private fun read() {
        val record = record() ?: return
        val choices = application.chats.experts(intent.getStringExtra(CHAT).orEmpty(), intent.getIntExtra(TURN, 0))
        application.io.execute {
            val profile = readOrNull(record, AnswerProfile::fromJson)
            val experts = readOrNull(choices, ExpertMap::fromJson)
            application.main.execute { show(profile, experts) }
        }
    }

    private fun show(profile: AnswerProfile?, experts: ExpertMap?) {
        if (isDestroyed) return
        this.profile = profile
        this.experts = experts
        isRead = true
        profile?.let {
            PerformancePanel(findViewById(R.id.panel_performance)).show(it)
            showAction(R.drawable.ic_share, R.string.share_profile, ::share)
        }
        experts?.let { ExpertsPanel(findViewById(R.id.panel_experts)).show(it) }
        showTabs()
    }

    /** The record itself goes out, as a copy that the receiver alone may read. */
    private fun share() {
        val record = record() ?: return
        application.io.execute {
            val name = "mote-profile.json"
            try {
                record.copyTo(File(SharedFilesProvider.folder(this, SharedFilesProvider.SHARE), name), overwrite = true)
            } catch (_: IOException) { // a full disk, or the chat was deleted meanwhile
                application.main.execute { Toast.makeText(this, R.string.share_failed, Toast.LENGTH_LONG).show() }
                return@execute
            }
            val uri = SharedFilesProvider.uri(SharedFilesProvider.SHARE, name)
            val send = Intent(Intent.ACTION_SEND)
                .setType("application/json")
                .putExtra(Intent.EXTRA_STREAM, uri)
                .putExtra(Intent.EXTRA_SUBJECT, getString(R.string.share_subject, title))
                .addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION)
            send.clipData = ClipData.newRawUri(name, uri)
            val chooser = Intent.createChooser(send, getString(R.string.share_profile))
            application.main.execute { if (!isDestroyed) startActivity(chooser) }
        }
    }

    private fun record(): File? {
        val chat = intent.getStringExtra(CHAT) ?: return null
        return application.chats.profile(chat, intent.getIntExtra(TURN, 0))
    }

    private fun <T> readOrNull(file: File, parse: (String) -> T): T? = try {
        parse(file.readBounded(ChatStore.MAX_BYTES))
    } catch (_: IOException) {
        null
    } catch (_: JSONException) {
        null
    }

    companion object {
        private const val CHAT = "chat"
        private const val TURN = "turn"
        private const val QUESTION = "question"
        private const val EXPERTS = "experts"

        fun intent(context: Context, chat: String, turn: Turn): Intent = Intent(context, DetailsActivity::class.java)
            .putExtra(CHAT, chat)
            .putExtra(TURN, turn.id)
            .putExtra(QUESTION, turn.question)
    }
}
