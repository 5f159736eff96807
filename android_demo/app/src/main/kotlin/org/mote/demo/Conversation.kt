package org.mote.demo

import java.io.IOException
import java.util.concurrent.Executor
import org.mote.demo.data.Chat
import org.mote.demo.data.ChatStore
import org.mote.demo.data.ExpertMap
import org.mote.demo.data.Picture
import org.mote.demo.data.Pictures
import org.mote.demo.data.Settings
import org.mote.demo.data.Turn
import org.mote.demo.data.TurnState
import org.mote.demo.data.writeAtomically
import org.mote.engine.Answer
import org.mote.engine.BitmapImages
import org.mote.engine.FinishReason
import org.mote.engine.Generation
import org.mote.engine.GenerationListener
import org.mote.engine.GenerationRequest
import org.mote.engine.MoteException
import org.mote.engine.MoteSession
import org.mote.engine.ProfileRecord
import org.mote.engine.RgbImage

/**
 * The chat that is shown and the answer that runs in it. It belongs to the process, not to a screen: an answer goes on
 * through rotation and behind other screens, and is on disk when it ends.
 *
 * For the main thread. Files are written on [io].
 *
 * @param version of the app, for the record of an answer.
 */
class Conversation(
    private val store: ChatStore,
    private val pictures: Pictures,
    private val settings: Settings,
    private val model: LoadedModel,
    private val io: Executor,
    private val main: Executor,
    private val version: String,
) {
    /** Hears of changes. [onTurnChanged] comes for each piece of text, the other one when turns come or go. */
    interface Observer {
        fun onChatChanged()
        fun onTurnChanged(turn: Turn)
    }

    /** The answer that is made now. */
    private class Running(val chat: Chat, val turn: Turn) {
        /** Null until the picture is read. */
        var request: GenerationRequest? = null

        /** Null until the model is open as well. */
        var generation: Generation? = null

        /** The chat was deleted meanwhile: nothing of it is kept. */
        var isDiscarded = false
    }

    var chat: Chat = newChat()
        private set
    private var running: Running? = null
    private val observers = ArrayList<Observer>()

    val isRunning: Boolean get() = running != null

    init {
        model.observe { proceed() }
    }

    fun observe(observer: Observer) {
        observers += observer
    }

    fun unobserve(observer: Observer) {
        observers -= observer
    }

    /** Goes back to the chat of the last time, after a new start of the process. */
    fun restore() {
        val id = settings.chat ?: return
        load(id) { if (chat.turns.isEmpty()) show(it) }
    }

    fun startNew() {
        stop()
        show(newChat())
    }

    fun open(id: String) {
        if (id == chat.id) return
        stop()
        load(id, ::show)
    }

    fun delete(id: String) {
        running?.takeIf { it.chat.id == id }?.let {
            it.isDiscarded = true
            stop()
        }
        if (id == chat.id) show(newChat())
        io.execute { store.delete(id) }
    }

    /**
     * Asks the model that was [required][LoadedModel.require] before, as soon as it is open. Not while [isRunning].
     *
     * @param picture null for a model that takes none.
     */
    fun ask(question: String, picture: Picture?) {
        check(!isRunning) { "an answer is running" }
        val now = Running(chat, chat.add(question))
        running = now
        settings.chat = chat.id
        chatChanged()
        val maxNewTokens = settings.maxNewTokens
        val temperature = settings.temperature
        io.execute {
            val prepared = runCatching { picture?.let { prepare(now.chat.id, it) } }
            main.execute {
                if (running !== now) return@execute
                prepared.onFailure { fail(now, sentenceOf(it)) }.onSuccess {
                    now.turn.picture = it?.name
                    now.request = GenerationRequest(
                        question,
                        it?.image,
                        maxNewTokens,
                        temperature,
                        seed = now.turn.id.toLong(),
                        recordExperts = true,
                    )
                    save()
                    turnChanged(now.turn)
                    proceed()
                }
            }
        }
    }

    /** Ends the running answer; what there is of it stays. */
    fun stop() {
        val now = running ?: return
        val generation = now.generation
        if (generation != null) generation.cancel() else end(now) { it.finishReason = FinishReason.CANCELLED }
    }

    /** Puts the chat with what there is of a running answer on disk, as the process may end at any time now. */
    fun save() {
        val now = running ?: return
        if (!now.isDiscarded) save(now.chat)
    }

    private class Prepared(val name: String, val image: RgbImage)

    private fun prepare(chatId: String, picture: Picture): Prepared {
        val bytes = pictures.open(picture).use { it.readBytes() }
        val image = BitmapImages.decode { bytes.inputStream() }
        return Prepared(store.keepPicture(chatId, bytes), image)
    }

    private fun proceed() {
        val now = running ?: return
        val request = now.request ?: return
        if (now.generation != null) return
        when (val state = model.state) {
            is LoadedModel.State.Ready -> start(now, request, state.session)
            is LoadedModel.State.Failed -> fail(now, state.sentence)
            is LoadedModel.State.Closed -> end(now) { it.finishReason = FinishReason.CANCELLED }
            is LoadedModel.State.Opening -> Unit
        }
    }

    private fun start(now: Running, request: GenerationRequest, session: MoteSession) {
        now.turn.state = TurnState.RUNNING
        now.request = null // and with it the picture, as soon as the session needs it no more
        now.generation = session.generate(request, object : GenerationListener {
            override fun onText(piece: String) = main.execute {
                now.turn.answer += piece
                turnChanged(now.turn)
            }

            override fun onFinished(answer: Answer) {
                val images = if (request.image == null) 0 else 1
                val record = ProfileRecord.toJson(
                    session, listOf(answer), "mote-android $version", 0, listOf(answer.memory), images,
                )
                val experts = answer.experts?.let { ExpertMap.of(it).toJson() }
                main.execute { finish(now, answer, record, experts) }
            }

            override fun onFailed(error: MoteException) = main.execute { fail(now, error.message.orEmpty()) }
        })
        turnChanged(now.turn)
    }

    private fun finish(now: Running, answer: Answer, record: String, experts: String?) {
        if (!now.isDiscarded) {
            io.execute {
                quietly {
                    store.profile(now.chat.id, now.turn.id).writeAtomically(record)
                    experts?.let { store.experts(now.chat.id, now.turn.id).writeAtomically(it) }
                }
            }
        }
        end(now) {
            it.answer = answer.text
            it.finishReason = answer.finishReason
            it.firstTokenMs = answer.timings.timeToFirstTokenMs
            it.tokensPerSecond = answer.timings.decodeTokensPerSecond
            it.hasProfile = true
        }
    }

    private fun fail(now: Running, sentence: String) = end(now, TurnState.FAILED) { it.error = sentence }

    private fun end(now: Running, state: TurnState = TurnState.DONE, change: (Turn) -> Unit) {
        if (running !== now) return
        now.turn.state = state
        change(now.turn)
        running = null
        if (!now.isDiscarded) save(now.chat)
        turnChanged(now.turn)
    }

    private fun save(chat: Chat) {
        val json = chat.toJson().toString() // now, as the chat goes on
        io.execute { quietly { store.save(chat.id, json) } }
    }

    private fun load(id: String, then: (Chat) -> Unit) = io.execute {
        store.load(id)?.let { main.execute { then(it) } }
    }

    private fun show(next: Chat) {
        chat = next
        settings.chat = next.id
        chatChanged()
    }

    private fun chatChanged() = observers.toList().forEach { it.onChatChanged() }

    private fun turnChanged(turn: Turn) = observers.toList().forEach { it.onTurnChanged(turn) }

    private companion object {
        fun newChat(): Chat = System.currentTimeMillis().let { Chat(ChatStore.newId(it), it) }

        fun sentenceOf(error: Throwable): String = when (error) {
            is MoteException -> error.message.orEmpty()
            is OutOfMemoryError -> "there is not enough memory for this picture; take a smaller one."
            is IOException -> "the picture cannot be kept (${error.message}); free some space and ask again."
            else -> throw error
        }

        /**
         * A full disk must not cost the answer on the screen; that it is not in the history later shows soon enough.
         */
        fun quietly(write: () -> Unit) = try {
            write()
        } catch (error: IOException) {
            android.util.Log.w("mote", "the chat cannot be saved", error)
        }
    }
}
