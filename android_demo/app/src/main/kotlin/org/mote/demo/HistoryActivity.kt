package org.mote.demo

import android.app.Activity
import android.app.AlertDialog
import android.os.Bundle
import android.text.format.DateUtils
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.ImageView
import android.widget.ListView
import android.widget.TextView
import org.mote.demo.data.ChatStore
import org.mote.demo.ui.dp
import org.mote.demo.ui.fitScreen
import org.mote.demo.ui.isShown
import org.mote.demo.ui.roundCorners

/** The chats that are kept: open one again, or delete it. */
class HistoryActivity : Activity() {
    private val application by lazy { DemoApplication.of(this) }
    private var chats: List<ChatStore.Summary> = emptyList()
    private val adapter = ChatAdapter()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_list)
        showHeader(R.string.history)
        val list = findViewById<ListView>(R.id.list)
        list.adapter = adapter
        fitScreen(findViewById(R.id.screen), list)
        findViewById<TextView>(R.id.empty_title).setText(R.string.no_chats)
        findViewById<TextView>(R.id.empty_note).setText(R.string.no_chats_note)
    }

    override fun onStart() {
        super.onStart()
        refresh()
    }

    private fun refresh() = application.io.execute {
        val found = application.chats.list()
        application.main.execute {
            chats = found
            adapter.notifyDataSetChanged()
            findViewById<View>(R.id.empty).isShown(found.isEmpty())
        }
    }

    private fun open(chat: ChatStore.Summary) {
        application.conversation.open(chat.id)
        finish()
    }

    private fun confirmDelete(chat: ChatStore.Summary) {
        AlertDialog.Builder(this)
            .setTitle(chat.title)
            .setMessage(R.string.delete_chat)
            .setNegativeButton(R.string.cancel, null)
            .setPositiveButton(R.string.delete) { _, _ ->
                application.conversation.delete(chat.id)
                refresh()
            }
            .show()
    }

    private inner class ChatAdapter : BaseAdapter() {
        override fun getCount(): Int = chats.size

        override fun getItem(position: Int): ChatStore.Summary = chats[position]

        override fun getItemId(position: Int): Long = position.toLong()

        override fun isEnabled(position: Int): Boolean = false

        override fun getView(position: Int, convertView: View?, parent: ViewGroup): View {
            val view = convertView ?: layoutInflater.inflate(R.layout.item_chat, parent, false)
            val chat = getItem(position)
            view.findViewById<TextView>(R.id.name).text = chat.title
            val count = resources.getQuantityString(R.plurals.questions, chat.turns, chat.turns)
            val date = DateUtils.getRelativeTimeSpanString(chat.changedMs)
            view.findViewById<TextView>(R.id.facts).text = getString(R.string.chat_facts, count, date)
            val picture = view.findViewById<ImageView>(R.id.picture)
            picture.isShown(chat.picture != null)
            picture.roundCorners(14f)
            chat.picture?.let { application.thumbnails.show(picture, it.path, dp(176), it::inputStream) }
            view.findViewById<View>(R.id.card).setOnClickListener { open(chat) }
            val delete = view.findViewById<View>(R.id.delete)
            delete.contentDescription = getString(R.string.delete_named, chat.title)
            delete.setOnClickListener { confirmDelete(chat) }
            return view
        }
    }
}
