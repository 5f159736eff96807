package org.mote.demo

import java.io.File
import java.util.concurrent.Executor
import org.mote.engine.EngineOptions
import org.mote.engine.MoteException
import org.mote.engine.MoteSession
import org.mote.engine.NativeLibraries
import org.mote.engine.Runtime

/**
 * The one model that is open. It belongs to the process, so that it and a running answer survive rotation and change of
 * screens.
 *
 * For the main thread; opening and closing happen on [loader], one after the other, so that there are never two models
 * in memory.
 */
class LoadedModel(
    private val libraries: () -> NativeLibraries,
    private val loader: Executor,
    private val main: Executor,
) {
    /** What is to be opened, and how. */
    data class Key(val folder: File, val runtime: Runtime, val threads: Int?)

    sealed interface State {
        data object Closed : State
        class Opening(val key: Key) : State
        class Ready(val key: Key, val session: MoteSession) : State

        /** @property sentence the engine's. */
        class Failed(val key: Key, val sentence: String) : State
    }

    var state: State = State.Closed
        private set(value) {
            field = value
            observers.toList().forEach { it(value) }
        }
    private val observers = ArrayList<(State) -> Unit>()
    private val verified = HashSet<Pair<File, Long>>() // touched by the loader only
    private var open: MoteSession? = null // touched by the loader only
    private var number = 0 // of the latest request

    fun observe(observer: (State) -> Unit) {
        observers += observer
    }

    fun unobserve(observer: (State) -> Unit) {
        observers -= observer
    }

    /** Opens this model in place of the one before, unless it is open or being opened. A failed one is tried again. */
    fun require(key: Key) {
        when (val now = state) {
            is State.Opening -> if (now.key == key) return
            is State.Ready -> if (now.key == key) return
            else -> Unit
        }
        val request = ++number
        state = State.Opening(key)
        loader.execute {
            val result = try {
                replaceBy(null)
                replaceBy(openChecked(key))
                State.Ready(key, checkNotNull(open))
            } catch (error: MoteException) {
                State.Failed(key, error.message.orEmpty())
            }
            // An outdated session is closed by the request that came after it.
            main.execute { if (request == number) state = result }
        }
    }

    /** Closes what is open; [then] runs on the loader's thread, with nothing else in memory until it returns. */
    fun close(then: () -> Unit = {}) {
        number++
        state = State.Closed
        loader.execute {
            replaceBy(null)
            then()
        }
    }

    /** From `onTrimMemory`. */
    fun trimMemory() {
        (state as? State.Ready)?.session?.trimMemory()
    }

    /**
     * The sums of a large model take seconds, so they are compared once in a process for each time that it was written.
     */
    private fun openChecked(key: Key): MoteSession {
        val stamp = key.folder to (key.folder.walkTopDown().maxOfOrNull { it.lastModified() } ?: 0)
        val options = EngineOptions(key.threads, verify = stamp !in verified)
        return MoteSession.open(key.folder, libraries(), key.runtime, options).also { verified += stamp }
    }

    private fun replaceBy(session: MoteSession?) {
        open?.close()
        open = session
    }
}
