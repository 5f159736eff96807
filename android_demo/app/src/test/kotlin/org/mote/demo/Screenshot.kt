package org.mote.demo

import android.app.Activity
import android.graphics.Bitmap
import android.graphics.Color
import android.graphics.Rect
import android.os.Handler
import android.os.HandlerThread
import android.view.PixelCopy
import android.view.View
import java.io.File
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.math.abs
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue

/** A window as the hardware renderer draws it, outlines and clips included. */
internal class Screenshot private constructor(private val bitmap: Bitmap) {
    val width: Int get() = bitmap.width
    val height: Int get() = bitmap.height

    fun save(name: String) {
        File(System.getProperty("mote.screenshot.dir")!!, "$name.png").outputStream().use {
            bitmap.compress(Bitmap.CompressFormat.PNG, 100, it)
        }
    }

    fun color(x: Int, y: Int): Int = bitmap.getPixel(x, y)

    /** The share of a region's pixels that have a color, give or take what blending rounds. */
    fun share(region: Rect, color: Int): Double {
        val pixels = IntArray(region.width() * region.height())
        bitmap.getPixels(pixels, 0, region.width(), region.left, region.top, region.width(), region.height())
        return pixels.count { isNear(it, color) }.toDouble() / pixels.size
    }

    fun assertAll(what: String, region: Rect, color: Int) = assertEquals(what, 1.0, share(region, color), 0.0)

    companion object {
        private const val ROUNDING = 2

        fun isNear(first: Int, second: Int): Boolean =
            listOf<(Int) -> Int>(Color::red, Color::green, Color::blue).all { abs(it(first) - it(second)) <= ROUNDING }

        fun of(activity: Activity): Screenshot {
            val view = activity.window.decorView
            val bitmap = Bitmap.createBitmap(view.width, view.height, Bitmap.Config.ARGB_8888)
            val thread = HandlerThread("pixels").apply { start() }
            val done = CountDownLatch(1)
            var result = -1
            val finished = PixelCopy.OnPixelCopyFinishedListener {
                result = it
                done.countDown()
            }
            PixelCopy.request(activity.window, bitmap, finished, Handler(thread.looper))
            assertTrue(done.await(60, TimeUnit.SECONDS))
            thread.quit()
            assertEquals(PixelCopy.SUCCESS, result)
            return Screenshot(bitmap)
        }
    }
}

/** Where a view is in its window, as far as it can be seen. */
internal fun View.place(): Rect = Rect().also { getGlobalVisibleRect(it) }
