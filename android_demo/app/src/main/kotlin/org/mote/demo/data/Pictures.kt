package org.mote.demo.data

import android.content.Context
import java.io.File
import java.io.IOException
import java.io.InputStream
import org.mote.demo.R
import org.mote.engine.BitmapImages
import org.mote.engine.MoteException

/** A picture to ask about: one of the app's samples, or the user's own. */
sealed interface Picture {
    /** How [Settings.picture] names it. */
    val key: String

    class Sample(val file: String, val description: String) : Picture {
        override val key: String get() = file
    }

    /** @property version tells one own picture from the next. */
    class Own(val file: File, val version: Long) : Picture {
        override val key: String get() = OWN
    }

    companion object {
        const val OWN = "own"
    }
}

/**
 * The pictures one can choose from, and the user's own one, which is copied so that it outlives the permission to read
 * it.
 */
class Pictures(private val context: Context) {
    private val ownFile = File(context.filesDir, "picture/own")

    val samples: List<Picture.Sample>
        get() {
            val names = context.resources.getStringArray(R.array.sample_names)
            return names.zip(context.resources.getStringArray(R.array.sample_descriptions), Picture::Sample)
        }

    val own: Picture.Own? get() = ownFile.takeIf { it.isFile }?.let { Picture.Own(it, it.lastModified()) }

    fun find(key: String?): Picture =
        (if (key == Picture.OWN) own else samples.firstOrNull { it.key == key }) ?: samples.first()

    /** Throws [IOException]. */
    fun open(picture: Picture): InputStream = when (picture) {
        is Picture.Sample -> context.assets.open("samples/${picture.file}")
        is Picture.Own -> picture.file.inputStream()
    }

    /**
     * Takes a picture of the user's in, in place of the one before. Blocking. Throws [MoteException] for what is no
     * picture, in which case the one before stays.
     *
     * @param open its stream, twice.
     */
    fun takeIn(open: () -> InputStream?): Picture.Own {
        val candidate = File(ownFile.parentFile, "candidate")
        try {
            candidate.writeAtomically { out ->
                val stream = open() ?: throw IOException("there is no such file")
                stream.use { it.copyBounded(out, BitmapImages.MAX_BYTES.toLong()) }
            }
        } catch (error: IOException) {
            throw MoteException("the picture cannot be read (${error.message}); choose another one", error)
        } catch (error: SecurityException) {
            throw MoteException("the picture may not be read; choose it again", error)
        }
        try {
            BitmapImages.decode { candidate.inputStream() }
        } catch (error: MoteException) {
            candidate.delete()
            throw error
        }
        if (!candidate.renameTo(ownFile)) {
            throw MoteException("the picture cannot be kept; free some space and choose it again")
        }
        return checkNotNull(own)
    }
}
