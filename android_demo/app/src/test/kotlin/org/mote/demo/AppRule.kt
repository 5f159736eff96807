package org.mote.demo

import android.app.Activity
import android.content.Intent
import android.content.pm.ApplicationInfo
import android.os.Looper
import android.view.View
import android.view.ViewGroup
import android.widget.TextView
import java.io.File
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import org.junit.Assert.assertTrue
import org.junit.rules.ExternalResource
import org.robolectric.Robolectric
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ActivityController

/**
 * The real app in a Robolectric world, with the native libraries of this machine; what a test opens is closed behind
 * it.
 */
class AppRule(private val native: File = File(System.getProperty("mote.native.dir")!!)) : ExternalResource() {
    lateinit var app: DemoApplication
        private set
    private val controllers = ArrayList<ActivityController<*>>()

    override fun before() {
        app = RuntimeEnvironment.getApplication() as DemoApplication
        useLibraries(native)
    }

    override fun after() {
        controllers.forEach { if (!it.get().isDestroyed) it.close() }
        app.loadedModel.close()
        waitUntil("the model is closed") { app.conversation.isRunning.not() }
        idle()
    }

    fun useLibraries(folder: File) {
        val info: ApplicationInfo = app.applicationInfo
        info.nativeLibraryDir = folder.path
    }

    /** Opens a screen as the system would, until it is visible and laid out. */
    fun <T : Activity> open(screen: Class<T>, intent: Intent = Intent(app, screen)): ActivityController<T> =
        Robolectric.buildActivity(screen, intent).also {
            controllers += it
            it.setup()
            idle()
        }

    /** The chat with the bundled model unpacked and open. */
    fun openChat(): ActivityController<ChatActivity> = open(ChatActivity::class.java).also { awaitModel() }

    fun awaitModel() = waitUntil("the model is open") {
        val state = app.loadedModel.state
        check(state !is LoadedModel.State.Failed) { (state as LoadedModel.State.Failed).sentence }
        state is LoadedModel.State.Ready && app.modelLibrary.progress == null
    }

    /** The model that `mote-export --target all` wrote, as if it had been pushed by adb. */
    fun pushModel(name: String): File {
        val folder = File(checkNotNull(app.models.pushedFolder), name)
        File(System.getProperty("mote.model.dir")!!).copyRecursively(folder)
        return folder
    }

    private fun situation() = app.run {
        "model ${loadedModel.state}, models ${modelLibrary.models?.map { it.name }}, copy ${modelLibrary.progress}, " +
            "running ${conversation.isRunning}"
    }

    /** Waits for what the app's threads were told to do until now, thumbnails as well. */
    fun settle() {
        repeat(2) {
            for (worker in listOf(app.io, app.thumbnailWorker)) {
                val done = CountDownLatch(1)
                worker.execute(done::countDown)
                assertTrue(done.await(60, TimeUnit.SECONDS))
            }
            idle()
        }
    }

    fun idle() = shadowOf(Looper.getMainLooper()).idle()

    /** Lets the main thread work until something is so; other threads are real. */
    fun waitUntil(what: String, isSo: () -> Boolean) {
        val end = System.nanoTime() + 60_000_000_000
        while (true) {
            idle()
            if (isSo()) return
            assertTrue("not within a minute: $what; ${situation()}", System.nanoTime() < end)
            Thread.sleep(2)
        }
    }
}

internal fun Activity.view(id: Int): View = findViewById(id)

internal fun Activity.text(id: Int): String = findViewById<TextView>(id).text.toString()

internal fun View.all(): Sequence<View> =
    sequenceOf(this) + if (this is ViewGroup) below() else emptySequence()

private fun ViewGroup.below(): Sequence<View> = (0 until childCount).asSequence().flatMap { getChildAt(it).all() }

internal val repository = File(System.getProperty("mote.repo.dir")!!)
