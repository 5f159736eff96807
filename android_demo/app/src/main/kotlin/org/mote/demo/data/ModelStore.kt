package org.mote.demo.data

import java.io.File
import org.mote.engine.Manifest
import org.mote.engine.MoteException
import org.mote.engine.Runtime

/**
 * A model that the app found.
 *
 * @property runtimes what it was exported for, in order of preference; empty if it cannot be used.
 * @property manifest of the first of them; null if it cannot be used.
 * @property problem the engine's sentence on why it cannot be used, as far as a look at names and sizes tells.
 */
class Model(
    val folder: File,
    val origin: Origin,
    val bytes: Long,
    val runtimes: List<Runtime>,
    val manifest: Manifest?,
    val problem: String?,
) {
    enum class Origin { BUNDLED, IMPORTED, PUSHED }

    /** Name of the folder, which tells two exports of a model apart. */
    val name: String get() = folder.name
    val path: String get() = folder.path
}

/**
 * Models of the app: those inside its private storage, bundled or imported, and those pushed by adb to its folder on
 * the shared storage. Blocking.
 *
 * @property inside where the app keeps models.
 * @param pushed gives the folder for adb; null while the shared storage is away.
 */
class ModelStore(val inside: File, private val pushed: () -> File?) {
    val pushedFolder: File? get() = pushed()

    fun list(): List<Model> {
        val own =
            subfolders(inside).map { look(it, if (it.name == BUNDLED) Model.Origin.BUNDLED else Model.Origin.IMPORTED) }
        return own + subfolders(pushed()).map { look(it, Model.Origin.PUSHED) }
    }

    /** The model in a folder of [list]; null if it is gone. */
    fun find(path: String?): Model? = list().firstOrNull { it.path == path }

    /** Where an import of this name goes. */
    fun folderOf(name: String): File = File(inside, name)

    fun delete(model: Model): Unit = model.folder.deleteFolder()

    /** Removes what was left behind by a copy that was cut off. Only while no copy runs. */
    fun removeUnfinished() {
        inside.listFiles().orEmpty().filter { isUnfinished(it.name) }.forEach { it.deleteRecursively() }
    }

    private fun subfolders(folder: File?): List<File> =
        folder?.listFiles().orEmpty()
            .filter { it.isDirectory && !isUnfinished(it.name) && !it.isHidden }
            .sortedBy { it.name }

    private fun look(folder: File, origin: Model.Origin): Model {
        val bytes = folder.totalBytes()
        return try {
            val manifests =
                exports(folder).map { Manifest.read(it).also { manifest -> manifest.verify(hashes = false) } }
            val runtimes = manifests.map { it.runtime }.sorted()
            Model(folder, origin, bytes, runtimes, manifests.minByOrNull { it.runtime }, null)
        } catch (error: MoteException) {
            Model(folder, origin, bytes, emptyList(), null, error.message)
        }
    }

    /** The folder itself if it is an export or none at all, else its subfolders that are. */
    private fun exports(folder: File): List<File> {
        val below = folder.listFiles().orEmpty().filter { File(it, MANIFEST).isFile }
        return if (File(folder, MANIFEST).exists() || below.isEmpty()) listOf(folder) else below
    }

    companion object {
        const val MANIFEST = "mote.json"

        /** Name of the demo model's folder. */
        const val BUNDLED = "digits"
    }
}
