package org.mote.engine

import java.io.InputStream

/** Pictures as Android decodes them. */
object BitmapImages {
    /** The greatest number of pixels that is decoded: more than any phone's camera delivers. */
    const val MAX_PIXELS: Long = 1L shl 26

    /**
     * A decoded picture, turned upright by its EXIF orientation. Throws [MoteException] with one sentence for what is no
     * picture, is cut short, or is too large.
     *
     * @param open called twice or more, for a new stream from the beginning each time; it is closed here.
     */
    fun decode(open: () -> InputStream?): RgbImage = TODO()
}
