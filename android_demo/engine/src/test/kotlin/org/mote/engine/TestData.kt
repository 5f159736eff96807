package org.mote.engine

import java.io.File
import java.util.concurrent.CopyOnWriteArrayList
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import javax.imageio.ImageIO
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue

/** What the tools that run the tests say: system properties. */
internal object TestData {
    val repository = File(System.getProperty("mote.repo.dir")!!)
    val model = File(System.getProperty("mote.model.dir")!!)
    val libraries = NativeLibraries(File(System.getProperty("mote.native.dir")!!))
    val scenes = File(repository, "examples/digits_vqa/images")

    /** A file that tests/android_golden.py wrote. */
    fun golden(name: String): ByteArray =
        checkNotNull(TestData::class.java.getResourceAsStream("/golden/$name")) { name }.use { it.readBytes() }

    fun goldenJson(name: String): Any? = StrictJson.parse(golden(name))

    fun scene(name: String): RgbImage {
        val image = ImageIO.read(File(scenes, name))
        val bytes = ByteArray(image.width * image.height * 3)
        for (y in 0 until image.height) {
            for (x in 0 until image.width) {
                val at = 3 * (y * image.width + x)
                for (channel in 0 until 3) bytes[at + channel] = (image.getRGB(x, y) shr (16 - 8 * channel)).toByte()
            }
        }
        return RgbImage(image.width, image.height, bytes)
    }

    /** The bytes of the generator in tests/android_golden.py. */
    fun noise(count: Int, seed: Int): ByteArray {
        var state = seed
        return ByteArray(count) {
            state = state * 1664525 + 1013904223
            (state ushr 24).toByte()
        }
    }

    fun noisePicture(width: Int, height: Int) =
        RgbImage(width, height, noise(width * height * 3, 1000 * width + height))

    /** What a program of the repository's Python prints; its arguments are files. */
    fun python(program: String, vararg arguments: File): String {
        val python = File(repository, ".venv/bin/python").path
        val command = listOf(python, "-c", program) + arguments.map { it.path }
        val process = ProcessBuilder(command).redirectErrorStream(true).start()
        val output = process.inputStream.bufferedReader().readText().trim()
        assertEquals(output, 0, process.waitFor())
        return output
    }

    fun open(runtime: Runtime, folder: File = model) = MoteSession.open(folder, libraries, runtime)
}

@Suppress("UNCHECKED_CAST")
internal fun Any?.asMap(): Map<String, Any?> = this as Map<String, Any?>

internal fun Any?.asList(): List<Any?> = this as List<Any?>

internal fun Any?.asInts(): List<Int> = asList().map { (it as Long).toInt() }

/** Keeps what it hears, and can be waited for. */
internal open class Heard : GenerationListener {
    val pieces = CopyOnWriteArrayList<String>()
    val ends = CopyOnWriteArrayList<Any>()
    private val ended = CountDownLatch(1)

    override fun onText(piece: String) {
        pieces += piece
    }

    override fun onFinished(answer: Answer) = end(answer)

    override fun onFailed(error: MoteException) = end(error)

    private fun end(what: Any) {
        ends += what
        ended.countDown()
    }

    fun await(): Any {
        assertTrue("no answer within a minute", ended.await(60, TimeUnit.SECONDS))
        return ends.single()
    }

    fun answer(): Answer = when (val end = await()) {
        is Answer -> end
        else -> throw end as MoteException
    }

    fun failure(): String = (await() as MoteException).message!!
}

internal fun MoteSession.ask(request: GenerationRequest): Answer = Heard().also { generate(request, it) }.answer()

internal fun sentenceOf(action: () -> Unit): String {
    try {
        action()
    } catch (error: MoteException) {
        return error.message!!
    }
    throw AssertionError("expected a MoteException")
}
