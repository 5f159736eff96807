package org.mote.demo

import android.text.TextUtils
import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.ImageView
import android.widget.ListView
import android.widget.TextView
import org.mote.demo.data.Chat
import org.mote.demo.data.Turn
import org.mote.demo.data.TurnState
import org.mote.demo.ui.dp
import org.mote.demo.ui.isShown
import org.mote.demo.ui.roundCorners
import org.mote.engine.FinishReason

/** The rows of a chat: a question with its answer each. */
internal class TurnAdapter(
    private val application: DemoApplication,
    private val onDetails: (Turn) -> Unit,
) : BaseAdapter() {
    var chat: Chat? = null
        set(value) {
            field = value
            notifyDataSetChanged()
        }

    override fun getCount(): Int = chat?.turns?.size ?: 0

    override fun getItem(position: Int): Turn = checkNotNull(chat).turns[position]

    override fun getItemId(position: Int): Long = getItem(position).id.toLong()

    override fun hasStableIds(): Boolean = true

    override fun areAllItemsEnabled(): Boolean = false

    override fun isEnabled(position: Int): Boolean = false // its parts are what is clicked

    override fun getView(position: Int, convertView: View?, parent: ViewGroup): View {
        val view = convertView ?: LayoutInflater.from(parent.context).inflate(R.layout.item_turn, parent, false).also {
            it.findViewById<View>(R.id.picture).roundCorners(20f)
        }
        bind(view, position)
        return view
    }

    /**
     * Updates the row of a turn in place, if it is on the screen: a piece of text must not lay out the whole list
     * again.
     */
    fun update(list: ListView, turn: Turn) {
        val position = chat?.turns?.indexOf(turn) ?: return
        if (position < 0) return
        val row = list.getChildAt(position - list.firstVisiblePosition)
        if (row == null) notifyDataSetChanged() else bind(row, position)
    }

    private fun bind(view: View, position: Int) {
        val turn = getItem(position)
        bindPicture(view.findViewById(R.id.picture), position, turn)
        view.findViewById<TextView>(R.id.question_text).text = turn.question
        bindAnswer(view, turn)
        val details = view.findViewById<TextView>(R.id.details)
        details.isShown(turn.hasProfile)
        details.text = summary(turn)
        details.contentDescription = application.getString(R.string.details_of_answer, details.text)
        details.setOnClickListener { onDetails(turn) }
    }

    /** A picture is shown with the first of the questions about it. */
    private fun bindPicture(image: ImageView, position: Int, turn: Turn) {
        val name = turn.picture
        val before = if (position > 0) getItem(position - 1).picture else null
        image.isShown(name != null && name != before)
        if (name == null) return
        val file = application.chats.picture(checkNotNull(chat).id, name)
        application.thumbnails.show(image, file.path, application.dp(176)) { file.inputStream() }
    }

    private fun bindAnswer(view: View, turn: Turn) {
        val bubble = view.findViewById<View>(R.id.answer)
        bubble.setBackgroundResource(
            if (turn.state == TurnState.FAILED) R.drawable.bubble_error else R.drawable.bubble_answer,
        )
        view.findViewById<View>(R.id.thinking).isShown(turn.isOpen && turn.answer.isEmpty())
        val text = view.findViewById<TextView>(R.id.answer_text)
        // Read aloud as it grows, and not again when an old one scrolls into view.
        text.accessibilityLiveRegion =
            if (turn.isOpen) View.ACCESSIBILITY_LIVE_REGION_POLITE else View.ACCESSIBILITY_LIVE_REGION_NONE
        val shown = if (turn.state == TurnState.FAILED) turn.error.orEmpty() else turn.answer
        if (!TextUtils.equals(text.text, shown)) text.text = shown
        text.setTextColor(application.getColor(if (turn.state == TurnState.FAILED) R.color.error else R.color.text))
        text.isShown(shown.isNotEmpty())
        val note = view.findViewById<TextView>(R.id.answer_note)
        note.text = note(turn)?.let(view.context::getString)
        note.isShown(note.text.isNotEmpty())
    }

    private fun note(turn: Turn): Int? = when {
        turn.state == TurnState.INTERRUPTED -> R.string.answer_interrupted
        turn.state == TurnState.WAITING && application.loadedModel.state is LoadedModel.State.Opening ->
            R.string.answer_waiting
        turn.state != TurnState.DONE -> null
        turn.finishReason == FinishReason.CANCELLED -> R.string.answer_stopped
        turn.finishReason == FinishReason.LENGTH -> R.string.answer_length
        turn.finishReason == FinishReason.CONTEXT -> R.string.answer_context
        turn.answer.isEmpty() -> R.string.answer_empty
        else -> null
    }

    private fun summary(turn: Turn): String {
        val first = application.duration(turn.firstTokenMs)
        if (turn.tokensPerSecond <= 0) return application.getString(R.string.answer_summary_short, first)
        return application.getString(R.string.answer_summary, first, digits(turn.tokensPerSecond))
    }
}
