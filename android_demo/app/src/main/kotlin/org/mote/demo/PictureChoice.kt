package org.mote.demo

import java.io.InputStream
import java.util.concurrent.Executor
import org.mote.demo.data.Picture
import org.mote.demo.data.Pictures
import org.mote.demo.data.Settings
import org.mote.engine.MoteException

/**
 * Which picture the next question is about. It belongs to the process, as a picture may be read while the screen is
 * made anew. For the main thread.
 */
class PictureChoice(
    private val pictures: Pictures,
    private val settings: Settings,
    private val io: Executor,
    private val main: Executor,
) {
    /** The picture that was chosen last, also in an earlier process. */
    val current: Picture get() = pictures.find(settings.picture)

    private val observers = ArrayList<(String?) -> Unit>()

    /** The observer hears that another one was chosen, or with a sentence why the one that was offered could not be. */
    fun observe(observer: (String?) -> Unit) {
        observers += observer
    }

    fun unobserve(observer: (String?) -> Unit) {
        observers -= observer
    }

    fun choose(picture: Picture) {
        settings.picture = picture.key
        tell(null)
    }

    /** Takes in a picture of the user's and chooses it. @param open its stream, called on another thread. */
    fun takeIn(open: () -> InputStream?) = io.execute {
        val taken = try {
            Result.success(pictures.takeIn(open))
        } catch (error: MoteException) {
            Result.failure(error)
        }
        main.execute { taken.onSuccess(::choose).onFailure { tell(it.message) } }
    }

    private fun tell(sentence: String?) = observers.toList().forEach { it(sentence) }
}
