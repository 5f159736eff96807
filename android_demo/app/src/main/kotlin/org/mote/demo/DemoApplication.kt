package org.mote.demo

import android.app.Application
import android.content.Context
import android.os.Handler
import android.os.Looper
import java.io.File
import java.util.concurrent.Executor
import java.util.concurrent.Executors
import org.mote.demo.data.ChatStore
import org.mote.demo.data.ModelStore
import org.mote.demo.data.Pictures
import org.mote.demo.data.Settings
import org.mote.engine.NativeLibraries

/**
 * What lives as long as the process: screens come and go, a loaded model, a running answer and a copy under way stay.
 *
 * Each is made when it is first used, on the main thread.
 */
class DemoApplication : Application() {
    private val handler = Handler(Looper.getMainLooper())

    /** The main thread, for what other threads have to tell. */
    val main = Executor { handler.post(it) }

    /** The one thread for the app's files, so that what is written first is read first. */
    val io: Executor = thread("files")

    internal val thumbnailWorker: Executor = thread("thumbnails")

    val settings by lazy { Settings(this) }
    val pictures by lazy { Pictures(this) }
    val pictureChoice by lazy { PictureChoice(pictures, settings, io, main) }
    val chats by lazy { ChatStore(File(filesDir, "chats")) }
    val models by lazy { ModelStore(File(filesDir, "models")) { getExternalFilesDir("models") } }
    val libraries by lazy { NativeLibraries(File(applicationInfo.nativeLibraryDir)) }
    val loadedModel by lazy { LoadedModel({ libraries }, thread("model"), main) }
    val conversation by lazy { Conversation(chats, pictures, settings, loadedModel, io, main, version) }
    val modelLibrary by lazy { ModelLibrary(this, models, settings, io, thread("copy"), main) }
    val benchmark by lazy { Benchmark(this) }
    val thumbnails by lazy { Thumbnails(thumbnailWorker, main) }

    /** Of the app, as the build said. */
    val version: String get() = packageManager.getPackageInfo(packageName, 0).versionName.orEmpty()

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        loadedModel.trimMemory()
        thumbnails.trimMemory()
    }

    private fun thread(name: String): Executor = Executors.newSingleThreadExecutor { Thread(it, "mote-$name") }

    companion object {
        fun of(context: Context): DemoApplication = context.applicationContext as DemoApplication
    }
}
