package org.mote.engine

import android.annotation.TargetApi
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.ImageDecoder
import android.media.ExifInterface
import android.os.Build
import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer

/** Pictures as Android decodes them. */
object BitmapImages {
    /** The greatest number of pixels that is decoded: more than most cameras deliver. */
    const val MAX_PIXELS: Long = 1L shl 26

    /** The greatest size of a file that is read. */
    const val MAX_BYTES: Int = 64 shl 20

    private const val CHUNK = 1 shl 16

    /**
     * A decoded picture, turned upright by its EXIF orientation; a transparent one keeps the colours that its file
     * says. Blocking. Throws [MoteException] with one sentence for what is no picture, is cut short, or is too large.
     *
     * Before Android 9 what is missing in a file that was cut short is grey instead, as the system does not say so
     * there.
     *
     * @param open gives the file from its beginning, or null where there is none; what it throws is an error of
     *   reading.
     */
    fun decode(open: () -> InputStream?): RgbImage {
        val bytes = read(open)
        try {
            checkSize(bytes)
            return if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.P) decodeWhole(bytes) else decodeAndTurn(bytes)
        } catch (error: OutOfMemoryError) {
            throw MoteException("there is not enough memory for a picture of this size; take a smaller one", error)
        }
    }

    private fun read(open: () -> InputStream?): ByteArray {
        try {
            val stream = open() ?: throw IOException("there is no such file")
            stream.use {
                val bytes = ByteArrayOutputStream()
                val chunk = ByteArray(CHUNK)
                while (true) {
                    val count = it.read(chunk)
                    if (count < 0) return bytes.toByteArray()
                    bytes.write(chunk, 0, count)
                    if (bytes.size() > MAX_BYTES) {
                        throw MoteException("the file is larger than ${MAX_BYTES shr 20} MB; take a smaller picture")
                    }
                }
            }
        } catch (error: IOException) {
            throw MoteException("the picture cannot be read: ${reason(error)}", error)
        } catch (error: SecurityException) { // a permission that was withdrawn
            throw MoteException("the picture may not be read: ${reason(error)}; choose it again", error)
        }
    }

    /** Before a pixel is decoded. */
    private fun checkSize(bytes: ByteArray) {
        val bounds = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        BitmapFactory.decodeByteArray(bytes, 0, bytes.size, bounds)
        val (width, height) = bounds.outWidth to bounds.outHeight
        if (width <= 0 || height <= 0) {
            throw MoteException("this is no picture that can be read; expected one of PNG, JPEG, WEBP, BMP, GIF, HEIF")
        }
        if (width.toLong() * height > MAX_PIXELS) {
            throw MoteException("the picture is $width x $height pixels; expected at most $MAX_PIXELS in all")
        }
    }

    @TargetApi(Build.VERSION_CODES.P)
    private fun decodeWhole(bytes: ByteArray): RgbImage {
        val bitmap = try {
            ImageDecoder.decodeBitmap(ImageDecoder.createSource(ByteBuffer.wrap(bytes))) { decoder, _, _ ->
                decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE
                decoder.isUnpremultipliedRequired = true
            }
        } catch (error: IOException) { // also of a part of a picture
            throw MoteException("the picture cannot be decoded, it may be cut short: ${reason(error)}", error)
        }
        return rgb(bitmap, ExifInterface.ORIENTATION_NORMAL) // upright already
    }

    internal fun decodeAndTurn(bytes: ByteArray): RgbImage {
        val options = BitmapFactory.Options().apply {
            inPreferredConfig = Bitmap.Config.ARGB_8888
            inPremultiplied = false
        }
        val bitmap = BitmapFactory.decodeByteArray(bytes, 0, bytes.size, options)
            ?: throw MoteException("the picture cannot be decoded, it may be cut short")
        return rgb(bitmap, orientation(bytes))
    }

    private fun orientation(bytes: ByteArray): Int = try {
        ExifInterface(ByteArrayInputStream(bytes))
            .getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL)
    } catch (_: IOException) {
        ExifInterface.ORIENTATION_NORMAL // no EXIF, or none that makes sense
    }

    /**
     * The pixels of [bitmap], which is recycled, as they stand after turning; row by row, so that there is no second
     * bitmap.
     */
    private fun rgb(bitmap: Bitmap, orientation: Int): RgbImage {
        val width = bitmap.width
        val height = bitmap.height
        val isTurned = orientation in ExifInterface.ORIENTATION_TRANSPOSE..ExifInterface.ORIENTATION_ROTATE_270
        val outWidth = if (isTurned) height else width
        val bytes = ByteArray(3 * width * height)
        val row = IntArray(width)
        for (y in 0 until height) {
            bitmap.getPixels(row, 0, width, 0, y, width, 1)
            for (x in 0 until width) {
                val at = 3 * place(orientation, x, y, width, height, outWidth)
                bytes[at] = (row[x] shr 16).toByte()
                bytes[at + 1] = (row[x] shr 8).toByte()
                bytes[at + 2] = row[x].toByte()
            }
        }
        bitmap.recycle()
        return RgbImage(outWidth, width * height / outWidth, bytes)
    }

    /** Where the pixel (x, y) of the file belongs in the upright picture (EXIF 2.32, section 4.6.5, tag 274). */
    private fun place(orientation: Int, x: Int, y: Int, width: Int, height: Int, outWidth: Int): Int {
        val left = width - 1 - x
        val up = height - 1 - y
        return when (orientation) {
            ExifInterface.ORIENTATION_FLIP_HORIZONTAL -> y * outWidth + left
            ExifInterface.ORIENTATION_ROTATE_180 -> up * outWidth + left
            ExifInterface.ORIENTATION_FLIP_VERTICAL -> up * outWidth + x
            ExifInterface.ORIENTATION_TRANSPOSE -> x * outWidth + y
            ExifInterface.ORIENTATION_ROTATE_90 -> x * outWidth + up
            ExifInterface.ORIENTATION_TRANSVERSE -> left * outWidth + up
            ExifInterface.ORIENTATION_ROTATE_270 -> left * outWidth + y
            else -> y * outWidth + x
        }
    }
}
