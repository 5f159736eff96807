package org.mote.demo

import android.net.Uri
import java.io.File
import java.io.IOException
import java.util.concurrent.CancellationException
import java.util.concurrent.Executor
import java.util.concurrent.atomic.AtomicBoolean
import org.mote.demo.data.CopyProgress
import org.mote.demo.data.Model
import org.mote.demo.data.ModelSource
import org.mote.demo.data.ModelStore
import org.mote.demo.data.Settings
import org.mote.demo.data.bundledModel
import org.mote.demo.data.copyModel
import org.mote.demo.data.documentModel
import org.mote.engine.MoteException
import org.mote.engine.Runtime

/**
 * The models as the screens see them: which there are, which is in use, and a copy that is under way. For the main
 * thread.
 *
 * @param io reads folders.
 * @param copier copies models, which takes longer.
 */
class ModelLibrary(
    private val application: DemoApplication,
    private val store: ModelStore,
    private val settings: Settings,
    private val io: Executor,
    private val copier: Executor,
    private val main: Executor,
) {
    /** What [refresh] found; null before the first time. */
    var models: List<Model>? = null
        private set

    /** Null while nothing is copied. */
    var progress: CopyProgress? = null
        private set

    private var message: String? = null

    /** The model in use: the chosen one if it is there, else the first that can be used. */
    val current: Model?
        get() {
            val known = models.orEmpty()
            return known.firstOrNull { it.path == settings.modelPath } ?: known.firstOrNull { it.runtimes.isNotEmpty() }
        }

    private val observers = ArrayList<() -> Unit>()
    private var cancel: AtomicBoolean? = null

    fun observe(observer: () -> Unit) {
        observers += observer
    }

    fun unobserve(observer: () -> Unit) {
        observers -= observer
    }

    /**
     * Looks at the folders again; unpacks the bundled model where it is missing, or where the app brings another one.
     */
    fun refresh() {
        io.execute {
            val isOutdated = isBundledOutdated()
            val found = store.list()
            main.execute {
                models = found
                changed()
                val isMissing =
                    found.none { it.origin == Model.Origin.BUNDLED } && (settings.wantsBundled || found.isEmpty())
                if (progress == null && (isOutdated || isMissing)) unpackBundled()
            }
        }
    }

    /**
     * How to open a model with the user's settings; null if there is no such model, or none of its exports can be used.
     */
    fun keyOf(model: Model?): LoadedModel.Key? {
        val runtimes = model?.runtimes.orEmpty()
        // What was chosen is taken even if its libraries are missing: the engine's sentence says more than a silent
        // other choice.
        val runtime = settings.runtime?.takeIf { it in runtimes }
            ?: runtimes.firstOrNull(application.libraries::has)
            ?: runtimes.firstOrNull()
        return if (model == null || runtime == null) null else LoadedModel.Key(model.folder, runtime, settings.threads)
    }

    fun choose(model: Model) {
        settings.modelPath = model.path
        changed()
    }

    fun delete(model: Model) {
        if (current === model) application.loadedModel.close()
        if (model.origin == Model.Origin.BUNDLED) settings.wantsBundled = false
        io.execute {
            store.delete(model)
            main.execute(::refresh)
        }
    }

    /** Copies a folder of the document picker; hears of [cancelCopy]. */
    fun import(tree: Uri) = copy { documentModel(application, tree) }

    fun cancelCopy() {
        cancel?.set(true)
    }

    /** What the last copy ended with, for the user, once; null: nothing to say. */
    fun takeMessage(): String? = message.also { message = null }

    private fun unpackBundled() = copy(replaces = true) {
        try {
            bundledModel(application.assets)
        } catch (error: IOException) {
            throw MoteException(application.getString(R.string.asset_failed, error.message), error)
        }
    }

    private fun isBundledOutdated(): Boolean {
        val installed = File(store.folderOf(ModelStore.BUNDLED), ModelStore.MANIFEST)
        if (!installed.isFile) return false
        return try {
            application.assets.open("models/${ModelStore.BUNDLED}/${ModelStore.MANIFEST}").use { it.readBytes() }
                .contentEquals(installed.readBytes()).not()
        } catch (_: IOException) {
            false // an app without a bundled model
        }
    }

    private fun copy(replaces: Boolean = false, source: () -> ModelSource) {
        if (progress != null) return
        val stop = AtomicBoolean()
        cancel = stop
        progress = CopyProgress("", 0, 1)
        message = null
        changed()
        copier.execute {
            val outcome = runCatching { copyChecked(source(), replaces, stop) }
            main.execute { ended(outcome, replaces) }
        }
    }

    private fun copyChecked(source: ModelSource, replaces: Boolean, stop: AtomicBoolean): File {
        store.removeUnfinished()
        val target = store.folderOf(source.name)
        if (target.exists() && !replaces) {
            throw MoteException(application.getString(R.string.import_exists, source.name))
        }
        val free = store.inside.apply { mkdirs() }.usableSpace
        if (source.bytes + MARGIN > free) {
            val (needed, left) = listOf(source.bytes, free).map(application::bytes)
            throw MoteException(application.getString(R.string.import_no_space, needed, left))
        }
        copyModel(source, target, stop::get) { main.execute { progressed(it) } }
        return target
    }

    private fun progressed(now: CopyProgress) {
        progress = now
        changed()
    }

    private fun ended(outcome: Result<File>, bundled: Boolean) {
        progress = null
        outcome.onSuccess {
            if (!bundled) {
                settings.modelPath = it.path
                message = application.getString(R.string.imported, it.name)
            }
        }.onFailure {
            message = when (it) {
                is MoteException -> it.message
                is CancellationException -> null
                is IOException ->
                    application.getString(if (bundled) R.string.asset_failed else R.string.import_failed, it.message)
                else -> application.getString(R.string.import_failed, it.javaClass.simpleName)
            }
        }
        changed()
        if (outcome.isSuccess) refresh()
    }

    private fun changed() = observers.toList().forEach { it() }

    private companion object {
        /** Left free for everything else. */
        const val MARGIN = 32L shl 20
    }
}
