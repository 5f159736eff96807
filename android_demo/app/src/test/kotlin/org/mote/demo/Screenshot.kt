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
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue

/** A window as the hardware renderer draws it, outlines and shadows included. */
internal class Screenshot(val bitmap: Bitmap) {
    fun save(name: String) {
        File(System.getProperty("mote.screenshot.dir")!!, "$name.png").outputStream().use {
            bitmap.compress(Bitmap.CompressFormat.PNG, 100, it)
        }
    }

    companion object {
        fun of(activity: Activity): Screenshot {
            val view = activity.window.decorView
            val bitmap = Bitmap.createBitmap(view.width, view.height, Bitmap.Config.ARGB_8888)
            val thread = HandlerThread("pixels").apply { start() }
            val done = CountDownLatch(1)
            var result = -1
            PixelCopy.request(activity.window, bitmap, {
                result = it
                done.countDown()
            }, Handler(thread.looper))
            assertTrue(done.await(60, TimeUnit.SECONDS))
            thread.quit()
            assertEquals(PixelCopy.SUCCESS, result)
            return Screenshot(bitmap)
        }
    }
}
