package org.mote.demo

import android.app.Activity.RESULT_OK
import android.content.Intent
import android.content.pm.ProviderInfo
import android.database.MatrixCursor
import android.os.CancellationSignal
import android.os.ParcelFileDescriptor
import android.provider.DocumentsContract
import android.provider.DocumentsContract.Document
import android.provider.DocumentsProvider
import android.view.View
import android.widget.ListView
import android.widget.TextView
import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.mote.demo.data.Model
import org.mote.demo.data.isUnfinished
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowAlertDialog
import org.robolectric.shadows.ShadowContentResolver
import org.robolectric.shadows.ShadowToast

private const val DOCUMENTS = "org.mote.test.documents"

/** A storage app: a folder of this machine as documents, whose ids are paths. */
class FolderProvider : DocumentsProvider() {
    lateinit var root: File

    /** What it claims of the size of each file, where that is not the truth. */
    var claimedSize: Long? = null

    /** Called before a file is opened. */
    var onOpen: () -> Unit = {}

    override fun onCreate() = true

    override fun queryRoots(projection: Array<String>?) = MatrixCursor(projection)

    override fun isChildDocument(parentDocumentId: String, documentId: String) = documentId.startsWith(parentDocumentId)

    override fun queryDocument(documentId: String, projection: Array<String>?) = rows(projection!!, listOf(documentId))

    override fun queryChildDocuments(parentDocumentId: String, projection: Array<String>?, sortOrder: String?) =
        rows(projection!!, File(root, parentDocumentId).list()!!.sorted().map { "$parentDocumentId/$it" })

    private fun rows(projection: Array<String>, ids: List<String>) = MatrixCursor(projection).apply {
        for (id in ids) {
            val file = File(root, id)
            val row = newRow()
            row.add(Document.COLUMN_DOCUMENT_ID, id)
            row.add(Document.COLUMN_DISPLAY_NAME, file.name)
            row.add(Document.COLUMN_SIZE, claimedSize ?: file.length())
            row.add(
                Document.COLUMN_MIME_TYPE, if (file.isDirectory) Document.MIME_TYPE_DIR else "application/octet-stream",
            )
        }
    }

    override fun openDocument(documentId: String, mode: String, signal: CancellationSignal?): ParcelFileDescriptor {
        onOpen()
        return ParcelFileDescriptor.open(File(root, documentId), ParcelFileDescriptor.MODE_READ_ONLY)
    }
}

/** Models that come and go. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class ModelsTest {
    @get:Rule
    val rule = AppRule()
    private val app get() = rule.app
    private val exported = File(System.getProperty("mote.model.dir")!!)
    private lateinit var screen: ModelsActivity
    private lateinit var documents: FolderProvider

    private fun open(root: File) {
        rule.openChat() // with the bundled model
        screen = rule.open(ModelsActivity::class.java).get()
        documents = FolderProvider().apply {
            this.root = root
            attachInfo(app, ProviderInfo().apply {
                authority = DOCUMENTS
                exported = true
                grantUriPermissions = true
                readPermission = android.Manifest.permission.MANAGE_DOCUMENTS
                writePermission = android.Manifest.permission.MANAGE_DOCUMENTS
            })
        }
        ShadowContentResolver.registerProviderInternal(DOCUMENTS, documents)
    }

    private fun choose(folder: String) {
        screen.view(R.id.import_folder).performClick()
        val request = shadowOf(screen).nextStartedActivityForResult
        assertEquals(Intent.ACTION_OPEN_DOCUMENT_TREE, request.intent.action)
        shadowOf(screen).receiveResult(
            request.intent, RESULT_OK, Intent().setData(DocumentsContract.buildTreeDocumentUri(DOCUMENTS, folder)),
        )
    }

    private fun import(folder: String): String? {
        choose(folder)
        rule.waitUntil("the import ends") { app.modelLibrary.progress == null }
        rule.settle()
        return ShadowToast.getTextOfLatestToast()
    }

    private fun inside() = File(app.filesDir, "models").list()!!.toSet()

    @Test
    fun aFolderIsImportedAndAnswers() {
        open(exported.parentFile!!)
        assertEquals(app.getString(R.string.import_exists, "digits"), import(exported.name))
        open(exported)
        assertEquals(app.getString(R.string.imported, "executorch"), import("executorch"))
        val model = app.modelLibrary.current!!
        assertEquals(Model.Origin.IMPORTED, model.origin)
        assertEquals(File(exported, "executorch").walk().filter { it.isFile }.associate { it.name to it.length() },
            model.folder.walk().filter { it.isFile }.associate { it.name to it.length() })
        app.loadedModel.require(app.modelLibrary.keyOf(model)!!)
        rule.awaitModel()
        val delete = screen.findViewById<ListView>(R.id.list).all()
            .first { it.contentDescription == app.getString(R.string.delete_named, "executorch") }
        delete.performClick()
        ShadowAlertDialog.getLatestAlertDialog().getButton(android.app.AlertDialog.BUTTON_POSITIVE).performClick()
        rule.waitUntil("it is gone") { app.modelLibrary.models.orEmpty().size == 1 }
        assertEquals(setOf("digits"), inside())
        assertEquals("digits", app.modelLibrary.current!!.name)
    }

    @Test
    fun whatCannotBeImportedSaysWhyAndLeavesNothing() {
        val root = File(app.cacheDir, "documents")
        File(root, "empty").mkdirs()
        File(root, "damaged").let { damaged ->
            File(exported, "executorch").copyRecursively(damaged)
            File(damaged, "tokenizer.json").appendText(" ")
        }
        File(root, "odd").mkdirs()
        File(root, "odd/mote.json").writeText("{}")
        File(root, "odd/a b.bin").writeText("")
        open(root)
        assertEquals(app.getString(R.string.import_nothing), import("empty"))
        assertEquals(app.getString(R.string.import_name, "a b.bin"), import("odd"))
        import("damaged").let { assertTrue(it, "tokenizer.json in damaged has" in it!!) }
        documents.claimedSize = 1L shl 50
        val sentence = import("damaged")!!
        val expected = app.getString(R.string.import_no_space, app.bytes(4L shl 50), "")
        assertEquals(expected.substringBefore(","), sentence.substringBefore(","))
        assertEquals(setOf("digits"), inside())
    }

    @Test
    fun anImportIsCancelled() {
        open(exported)
        documents.onOpen = { app.main.execute { screen.view(R.id.copying_cancel).performClick() }; Thread.sleep(100) }
        choose("executorch")
        assertEquals(View.VISIBLE, screen.view(R.id.copying).visibility)
        rule.waitUntil("the import ends") { app.modelLibrary.progress == null }
        assertEquals(null, ShadowToast.getTextOfLatestToast())
        assertEquals(setOf("digits"), inside())
        assertEquals(View.GONE, screen.view(R.id.copying).visibility)
    }

    @Test
    fun aFolderThatIsNoExportIsListedWithTheReason() {
        val pushed = checkNotNull(app.models.pushedFolder)
        File(pushed, "holiday").mkdirs()
        File(pushed, "holiday/picture.jpg").writeText("")
        File(pushed, "half").let { half ->
            File(exported, "onnx").copyRecursively(half)
            File(half, "vision.onnx.data").delete()
        }
        File(app.filesDir, "models/old.part").mkdirs()
        open(exported)
        rule.waitUntil("they are listed") { app.modelLibrary.models.orEmpty().size == 3 }
        rule.idle()
        val problems = screen.findViewById<ListView>(R.id.list).all()
            .filter { it.id == R.id.problem && it.visibility == View.VISIBLE }
            .map { (it as TextView).text.toString() }.toList()
        assertEquals(2, problems.size)
        assertTrue(problems[0], "vision.onnx.data is missing" in problems[0])
        assertTrue(problems[1], "has no mote.json" in problems[1])
        assertFalse("half a copy of an earlier process is removed", File(app.filesDir, "models/old.part").exists())
        assertEquals(emptyList<String>(), inside().filter(::isUnfinished))
        assertEquals("digits", app.modelLibrary.current!!.name)
    }
}
