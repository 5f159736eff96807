package org.mote.demo

import android.app.Activity
import android.content.ClipData
import android.content.Intent
import android.net.Uri
import android.os.Build
import android.provider.MediaStore
import java.io.File

/** Pictures from other apps. They need no permission: the user's choice is one. */
internal object PictureIntents {
    const val GALLERY = 1
    const val CAMERA = 2
    private const val PHOTO = "photo.jpg"

    /** The system's photo picker, or the document picker where there is none. */
    fun gallery(): Intent =
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.TIRAMISU) {
            Intent(MediaStore.ACTION_PICK_IMAGES).setType("image/*")
        } else {
            Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
        }

    /** The camera app, which puts its photo where [photo] is. */
    fun camera(activity: Activity): Intent {
        photo(activity).delete()
        val uri = SharedFilesProvider.uri(SharedFilesProvider.CAMERA, PHOTO)
        return Intent(MediaStore.ACTION_IMAGE_CAPTURE)
            .putExtra(MediaStore.EXTRA_OUTPUT, uri)
            .addFlags(Intent.FLAG_GRANT_WRITE_URI_PERMISSION or Intent.FLAG_GRANT_READ_URI_PERMISSION)
            .apply { clipData = ClipData.newRawUri(null, uri) } // which carries the grant before Android 11, too
    }

    fun photo(activity: Activity): File = File(SharedFilesProvider.folder(activity, SharedFilesProvider.CAMERA), PHOTO)

    /** What an app that offers pictures answered. */
    fun chosen(data: Intent?): Uri? = data?.data ?: data?.clipData?.takeIf { it.itemCount > 0 }?.getItemAt(0)?.uri
}
