package org.mote.engine

import java.io.File
import java.io.FileInputStream
import java.io.IOException
import java.security.MessageDigest

/**
 * `mote.json` of an exported folder (docs/export-format.md), checked field by field as `mote_runtime.manifest` does: a
 * folder may come from anywhere, so types, ranges, file names, sizes and SHA-256 sums are checked before they are used.
 *
 * @property folder where `mote.json` lies.
 * @property image null where the model takes no picture.
 * @property pluginLibrary name of the library with the operators; null in a portable export, which needs none.
 */
class Manifest internal constructor(
    val folder: File,
    val runtime: Runtime,
    val model: ModelSpec,
    val moe: MoeSpec,
    val image: ImageSpec?,
    val prompt: PromptSpec,
    val pluginLibrary: String?,
    val files: Map<String, FileEntry>,
) {
    val name: String get() = model.name
    val vocabSize: Int get() = model.vocabSize
    val contextLength: Int get() = model.contextLength

    /** The path of a file that the manifest lists. Throws [MoteException] if it lists none of this name. */
    fun path(name: String): File {
        if (name in files) return File(folder, name)
        throw MoteException("$MANIFEST_NAME in $folder lists no file $name; export the model again")
    }

    /**
     * Compares every listed file with the manifest: sizes always, SHA-256 sums with [hashes]. Throws [MoteException].
     *
     * The plugin's library is left out: it lies in the folder for other clients, is never loaded from there, and an app
     * has its own.
     */
    fun verify(hashes: Boolean) {
        val files = files.filterKeys { it != pluginLibrary || !it.endsWith(".so") }
        for ((name, entry) in files) {
            val size = regularFileSize(folder, name)
            if (size != entry.bytes) throw changed(name, "$size bytes", "${entry.bytes} bytes")
        }
        if (!hashes) return
        for ((name, entry) in files) {
            val found = try {
                sha256(File(folder, name))
            } catch (error: IOException) {
                throw MoteException("$name in $folder cannot be read: ${error.message}", error)
            }
            if (found != entry.sha256) throw changed(name, "SHA-256 $found", "SHA-256 ${entry.sha256}")
        }
    }

    private fun changed(name: String, found: String, expected: String) = MoteException(
        "$name in $folder has $found, but $MANIFEST_NAME expects $expected: the folder changed since the export; " +
            "copy it again or export anew",
    )

    companion object {
        /**
         * Reads and checks `mote.json` in [folder]; the other files are only looked at by [verify].
         * Throws [MoteException] where the folder or the manifest is missing, or a field is not what it must be.
         */
        fun read(folder: File): Manifest = readManifest(folder)
    }
}

/** The `model` section; the image fields are null in a text-only export. */
class ModelSpec internal constructor(
    val name: String,
    val architecture: String,
    val vocabSize: Int,
    val hiddenSize: Int,
    val numHiddenLayers: Int,
    val numAttentionHeads: Int,
    val numKeyValueHeads: Int,
    val headDim: Int,
    val contextLength: Int,
    val eosTokenIds: Set<Int>,
    val bosTokenId: Int?,
    val padTokenId: Int?,
    val imageTokenId: Int?,
    val visionStartTokenId: Int?,
    val visionEndTokenId: Int?,
    val numImageTokens: Int?,
)

/**
 * The `moe` section: which layers hold ternary experts, and how these and the shared ones are stored.
 *
 * @property sharedGroupSize weights that share a scale in `int4`, else 0.
 */
class MoeSpec internal constructor(
    val layers: IntArray,
    val numExperts: Int,
    val topK: Int,
    val normalizeTopk: Boolean,
    val intermediateSize: Int,
    val packing: String,
    val sharedExpert: String,
    val sharedGroupSize: Int,
)

/** The `image` section: how a picture becomes `pixel_values`; three [mean] and [std], of red, green and blue. */
class ImageSpec internal constructor(
    val height: Int,
    val width: Int,
    val rescaleFactor: Double,
    val mean: DoubleArray,
    val std: DoubleArray,
)

/** The `prompt` section; [image] holds `{image_pads}` once and is null where the model takes no image. */
class PromptSpec internal constructor(val userPrefix: String, val image: String?, val userSuffix: String)

/** Size in bytes and SHA-256 (lower-case hexadecimal) of a file at the time of the export. */
class FileEntry internal constructor(val bytes: Long, val sha256: String)

internal const val MANIFEST_NAME = "mote.json"
internal const val IMAGE_PADS = "{image_pads}"

private const val HASH_CHUNK = 1 shl 20

private fun sha256(file: File): String {
    val digest = MessageDigest.getInstance("SHA-256")
    FileInputStream(file).use { stream ->
        val chunk = ByteArray(HASH_CHUNK)
        while (true) {
            val count = stream.read(chunk)
            if (count < 0) break
            digest.update(chunk, 0, count)
        }
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}

/** Size of a regular file of the folder; a link may lead to another file of the folder, but not out of it. */
internal fun regularFileSize(folder: File, name: String): Long {
    val file = File(folder, name)
    if (!file.exists()) throw MoteException("$name is missing in $folder; copy the folder again or export anew")
    try {
        if (!file.canonicalFile.startsWith(folder.canonicalFile)) {
            throw MoteException("$name in $folder is a link that leaves the folder; copy the file itself there")
        }
    } catch (error: IOException) {
        throw MoteException("$name in $folder cannot be opened: ${error.message}", error)
    }
    if (file.isFile) return file.length()
    throw MoteException("$name in $folder is not a regular file; copy the folder again or export anew")
}
