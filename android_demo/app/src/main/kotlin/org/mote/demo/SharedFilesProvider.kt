package org.mote.demo

import android.content.ContentProvider
import android.content.ContentValues
import android.content.Context
import android.database.Cursor
import android.database.MatrixCursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import android.provider.OpenableColumns
import java.io.File
import java.io.FileNotFoundException

/**
 * Single files for other apps, each of which is granted the one it is sent: `content://AUTHORITY/share/NAME` to read,
 * and `content://AUTHORITY/camera/NAME`, where a camera app puts a photo. Both are folders of the cache.
 */
class SharedFilesProvider : ContentProvider() {
    override fun onCreate(): Boolean = true

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor {
        val file = fileOf(uri)
        if (mode != "r" && uri.pathSegments[0] != CAMERA) throw FileNotFoundException("$uri can only be read")
        return ParcelFileDescriptor.open(file, ParcelFileDescriptor.parseMode(mode))
    }

    override fun getType(uri: Uri): String =
        if (uri.lastPathSegment.orEmpty().endsWith(".json")) "application/json" else "image/jpeg"

    override fun query(
        uri: Uri, projection: Array<String>?, selection: String?, selectionArgs: Array<String>?, sortOrder: String?,
    ): Cursor {
        val file = fileOf(uri)
        val values = mapOf(OpenableColumns.DISPLAY_NAME to file.name, OpenableColumns.SIZE to file.length())
        val columns = (projection ?: values.keys.toTypedArray()).filter { it in values }
        return MatrixCursor(columns.toTypedArray(), 1).apply { addRow(columns.map { values[it] }) }
    }

    /** Nothing but a plain name in one of the two folders is a file here. */
    private fun fileOf(uri: Uri): File {
        val segments = uri.pathSegments
        val isKnown = segments.size == 2 && segments[0] in FOLDERS && PLAIN_NAME.matches(segments[1])
        if (!isKnown) throw FileNotFoundException("$uri is no shared file")
        return File(folder(checkNotNull(context), segments[0]), segments[1])
    }

    override fun insert(uri: Uri, values: ContentValues?): Uri? = throw UnsupportedOperationException()

    override fun update(uri: Uri, values: ContentValues?, selection: String?, selectionArgs: Array<String>?): Int =
        throw UnsupportedOperationException()

    override fun delete(uri: Uri, selection: String?, selectionArgs: Array<String>?): Int =
        throw UnsupportedOperationException()

    companion object {
        const val AUTHORITY = "org.mote.demo.files"
        const val SHARE = "share"
        const val CAMERA = "camera"
        private val FOLDERS = setOf(SHARE, CAMERA)
        private val PLAIN_NAME = Regex("[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")

        /** The folder behind [SHARE] or [CAMERA]; it is created. */
        fun folder(context: Context, kind: String): File = File(context.cacheDir, kind).apply { mkdirs() }

        fun uri(kind: String, name: String): Uri =
            Uri.Builder().scheme("content").authority(AUTHORITY).appendPath(kind).appendPath(name).build()
    }
}
