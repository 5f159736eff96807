package org.mote.engine

import android.content.Context
import android.net.Uri
import android.os.Handler
import android.os.Looper
import java.io.File
import java.util.Locale
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config

// begin of the example
/** Off the main thread: this compares the model's files with their checksums and maps them. Throws [MoteException]. */
fun openModel(context: Context, folder: File): MoteSession {
    val libraries = NativeLibraries(File(context.applicationInfo.nativeLibraryDir))
    val runtime = MoteSession.exportedRuntimes(folder).firstOrNull(libraries::has) ?: Runtime.ONNX_RUNTIME
    return MoteSession.open(folder, libraries, runtime)
}

/** Off the main thread too, as it decodes the picture; the answer then comes piece by piece, on the main thread. */
fun ask(context: Context, session: MoteSession, question: String, picture: Uri, show: (String) -> Unit): Generation {
    val main = Handler(Looper.getMainLooper())
    val image = BitmapImages.decode { context.contentResolver.openInputStream(picture) }
    return session.generate(
        GenerationRequest(question, image, maxNewTokens = 64),
        object : GenerationListener {
            override fun onText(piece: String) {
                main.post { show(piece) }
            }

            override fun onFinished(answer: Answer) {
                main.post { show(" [%.1f tokens/s]".format(Locale.ROOT, answer.timings.decodeTokensPerSecond)) }
            }

            override fun onFailed(error: MoteException) {
                main.post { show(error.message.orEmpty()) }
            }
        },
    )
}
// end of the example

/** The example of docs/android.md does what is said there. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class ExampleTest {
    @get:Rule
    val temporary = TemporaryFolder()

    @Test
    fun theExampleAnswers() {
        val context = RuntimeEnvironment.getApplication()
        // Copies, because Robolectric has a class loader of its own, and a library belongs to the one that loaded it
        // first.
        val folder = temporary.newFolder()
        for (name in listOf("mote_jni", "mote_ort")) {
            val file = File(TestData.libraries.path(name))
            file.copyTo(File(folder, file.name))
        }
        context.applicationInfo.nativeLibraryDir = folder.path
        openModel(context, TestData.model).use { session ->
            assertEquals(Runtime.ONNX_RUNTIME, session.runtime)
            val shown = StringBuilder()
            val picture = Uri.fromFile(File(TestData.scenes, "scene-0.png"))
            val generation = ask(context, session, "How many digits do you see?", picture) { shown.append(it) }
            assertTrue(generation.await(60_000))
            shadowOf(Looper.getMainLooper()).idle()
            assertTrue("$shown", Regex("""2 \[\d+\.\d tokens/s]""").matches(shown))
        }
    }

    @Test
    fun theExampleIsTheOneInTheDocumentation() {
        val tests = File(TestData.repository, "android_demo/engine/src/test/kotlin/org/mote/engine")
        val source = File(tests, "ExampleTest.kt").readText()
        val example = source.substringAfter("// begin of the example\n").substringBefore("// end of the example")
        val page = File(TestData.repository, "docs/android.md").readText()
        assertEquals(example, page.substringAfter("```kotlin\n").substringBefore("```"))
    }
}
