package org.mote.demo

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Matrix
import android.media.ExifInterface
import android.util.LruCache
import android.widget.ImageView
import java.io.IOException
import java.io.InputStream
import java.util.concurrent.Executor

/**
 * Small versions of pictures for the screen, decoded on a thread of their own and kept while there is room. For the
 * main thread.
 */
class Thumbnails(private val worker: Executor, private val main: Executor) {
    private val cache = object : LruCache<String, Bitmap>(CACHE_BYTES) {
        override fun sizeOf(key: String, value: Bitmap): Int = value.allocationByteCount
    }

    /**
     * Puts a picture into a view, at once or as soon as it is decoded; what cannot be read leaves the view empty.
     *
     * @param key tells pictures apart.
     * @param side the view's side in px.
     * @param open its stream, several times.
     */
    fun show(view: ImageView, key: String, side: Int, open: () -> InputStream) {
        val sized = "$key@$side"
        if (view.tag == sized && view.drawable != null) return
        view.tag = sized
        val kept = cache.get(sized)
        view.setImageBitmap(kept)
        if (kept != null) return
        worker.execute {
            val bitmap = decode(side, open) ?: return@execute
            main.execute {
                cache.put(sized, bitmap)
                if (view.tag == sized) view.setImageBitmap(bitmap)
            }
        }
    }

    fun trimMemory(): Unit = cache.evictAll()

    private fun decode(side: Int, open: () -> InputStream): Bitmap? = try {
        val options = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        open().use { BitmapFactory.decodeStream(it, null, options) }
        options.inJustDecodeBounds = false
        options.inSampleSize = (minOf(options.outWidth, options.outHeight) / side).coerceAtLeast(1)
        val bitmap = open().use { BitmapFactory.decodeStream(it, null, options) }
        bitmap?.let { turned(it, open().use { stream -> degrees(stream) }) }
    } catch (_: IOException) {
        null
    } catch (_: OutOfMemoryError) { // a picture less, not an app less
        null
    }

    private fun degrees(stream: InputStream): Float = try {
        when (ExifInterface(stream).getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL)) {
            ExifInterface.ORIENTATION_ROTATE_90 -> 90f
            ExifInterface.ORIENTATION_ROTATE_180 -> 180f
            ExifInterface.ORIENTATION_ROTATE_270 -> 270f
            else -> 0f
        }
    } catch (_: IOException) {
        0f // no EXIF
    }

    private fun turned(bitmap: Bitmap, degrees: Float): Bitmap {
        if (degrees == 0f) return bitmap
        return Bitmap.createBitmap(
            bitmap, 0, 0, bitmap.width, bitmap.height, Matrix().apply { postRotate(degrees) }, true,
        )
    }

    private companion object {
        const val CACHE_BYTES = 8 shl 20
    }
}
