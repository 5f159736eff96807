package org.mote.demo.data

import android.content.ContentResolver
import android.content.Context
import android.content.res.AssetManager
import android.net.Uri
import android.os.Bundle
import android.provider.DocumentsContract
import android.provider.DocumentsContract.Document
import java.io.IOException
import org.json.JSONException
import org.json.JSONObject
import org.mote.demo.R
import org.mote.engine.MoteException

private const val MAX_MANIFEST_BYTES = 1L shl 20
private const val MAX_FILES = 256
private val PLAIN_NAME = Regex("[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")

/**
 * The model inside the APK: `assets/models/digits/mote.json` and the files that it lists, but for the plugin's library,
 * which lies with the app's other native libraries. Throws [IOException].
 */
fun bundledModel(assets: AssetManager): ModelSource {
    val folder = "models/${ModelStore.BUNDLED}"
    val manifest = assets.open("$folder/${ModelStore.MANIFEST}").use { stream ->
        val bytes = java.io.ByteArrayOutputStream()
        stream.copyBounded(bytes, MAX_MANIFEST_BYTES)
        bytes.toByteArray()
    }
    val entries = ArrayList<ModelSource.Entry>()
    try {
        val json = JSONObject(String(manifest))
        val plugin = json.optJSONObject("plugin")?.optString("library")
        val files = json.getJSONObject("files")
        for (name in files.keys()) {
            if (name == plugin) continue
            val bytes = files.getJSONObject(name).getLong("bytes")
            entries += ModelSource.Entry(name, bytes) { assets.open("$folder/$name") }
        }
    } catch (error: JSONException) {
        throw IOException("its ${ModelStore.MANIFEST} is damaged", error)
    }
    entries += ModelSource.Entry(ModelStore.MANIFEST, manifest.size.toLong()) { manifest.inputStream() }
    return ModelSource(ModelStore.BUNDLED, entries)
}

/**
 * A folder that the user chose in the system's document picker: an export, or what `--target all` writes. Blocking.
 * Throws [MoteException] for what cannot be an export.
 */
fun documentModel(context: Context, tree: Uri): ModelSource {
    val folder = DocumentFolder(context.contentResolver, tree)
    try {
        val root = DocumentsContract.getTreeDocumentId(tree)
        val name = folder.nameOf(root).replace(Regex("[^A-Za-z0-9._-]"), "_").trimStart('.', '_').ifEmpty { "model" }
        val files = ArrayList<ModelSource.Entry>()
        for (child in folder.children(root)) {
            if (child.isFolder) {
                val below = folder.children(child.id)
                if (below.any { it.name == ModelStore.MANIFEST }) {
                    files += below.filterNot { it.isFolder }.map { folder.entry(it, child.name + "/") }
                }
            } else {
                files += folder.entry(child, "")
            }
        }
        val problem = files.map { it.path.split('/') }.firstOrNull { parts -> !parts.all(PLAIN_NAME::matches) }
        return when {
            files.none { it.path.endsWith(ModelStore.MANIFEST) } ->
                throw MoteException(context.getString(R.string.import_nothing))
            files.size > MAX_FILES -> throw MoteException(context.getString(R.string.import_too_much, MAX_FILES))
            problem != null ->
                throw MoteException(context.getString(R.string.import_name, problem.joinToString("/").take(80)))
            else -> ModelSource(name.take(100), files)
        }
    } catch (error: IOException) {
        throw MoteException(context.getString(R.string.import_failed, error.message), error)
    } catch (error: RuntimeException) { // providers are other apps, and throw whatever they like through the binder
        throw MoteException(context.getString(R.string.import_failed, error.javaClass.simpleName), error)
    }
}

/** One tree of documents. */
private class DocumentFolder(private val resolver: ContentResolver, private val tree: Uri) {
    class Child(val id: String, val name: String, val bytes: Long, val isFolder: Boolean)

    fun nameOf(id: String): String =
        query(DocumentsContract.buildDocumentUriUsingTree(tree, id)).firstOrNull()?.name.orEmpty()

    fun children(id: String): List<Child> = query(DocumentsContract.buildChildDocumentsUriUsingTree(tree, id))

    fun entry(child: Child, prefix: String) = ModelSource.Entry(prefix + child.name, child.bytes) {
        resolver.openInputStream(DocumentsContract.buildDocumentUriUsingTree(tree, child.id)) ?: throw IOException(
            child.name,
        )
    }

    private fun query(uri: Uri): List<Child> {
        val columns = arrayOf(
            Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_SIZE, Document.COLUMN_MIME_TYPE,
        )
        val cursor = resolver.query(uri, columns, Bundle.EMPTY, null) ?: throw IOException("no answer")
        return cursor.use {
            val children = ArrayList<Child>()
            while (it.moveToNext() && children.size <= MAX_FILES) {
                val isFolder = it.getString(3) == Document.MIME_TYPE_DIR
                children += Child(it.getString(0), it.getString(1).orEmpty(), it.getLong(2).coerceAtLeast(0), isFolder)
            }
            children
        }
    }
}
