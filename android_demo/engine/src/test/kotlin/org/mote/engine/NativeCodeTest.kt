package org.mote.engine

import java.io.File
import java.nio.ByteBuffer
import java.nio.FloatBuffer
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test

/** What crosses to native code is checked there: handles, buffers, sizes. */
class NativeCodeTest {
    private val folder = File(TestData.model, "executorch")
    private val manifest = Manifest.read(folder)
    private val model = manifest.model

    @Before
    fun load() {
        TestData.libraries.load(NativeLibraries.SUPPORT)
        TestData.libraries.load(NativeLibraries.EXECUTORCH)
    }

    @Test
    fun memoryIsZeroedGivenBackAndReleasedOnce() {
        val memory = NativeMemory.allocate(1L shl 20)!!
        val floats = memory.bytes.asFloatBuffer()
        assertEquals(1 shl 18, floats.capacity())
        for (index in 0 until floats.capacity() step 97) assertEquals(0f, floats[index])
        for (index in 0 until floats.capacity()) floats.put(index, 1f)
        memory.discard()
        for (index in 0 until floats.capacity() step 97) assertEquals(0f, floats[index])
        memory.close()
        memory.close()
        for (bytes in listOf(0, -1, Int.MAX_VALUE + 1L, Long.MAX_VALUE)) assertNull(NativeMemory.allocate(bytes))
        MoteJni.discard(ByteBuffer.allocate(8)) // on the Java heap: not ours
        MoteJni.release(ByteBuffer.allocate(8))
    }

    @Test
    fun onlyALoadedPluginRecords() {
        assertEquals(0L, MoteJni.openPlugin("/nowhere/libmote_ort.so".toByteArray()))
        assertEquals(0L, MoteJni.openPlugin(ByteArray(0)))
        assertEquals(0L, MoteJni.openPlugin(ByteArray(100_000) { 'x'.code.toByte() }))
        val path = TestData.libraries.path(NativeLibraries.SUPPORT) // loaded, but it records nothing
        assertEquals(0L, MoteJni.openPlugin(path.toByteArray()))
        assertFalse(MoteJni.startRecording(0, 100))
        assertEquals(-1, MoteJni.stopRecording(0))
        assertEquals(-1, MoteJni.readRoutes(0, 0, ByteBuffer.allocateDirect(24)))
        TestData.open(Runtime.ONNX_RUNTIME).use {
            val plugin = MoteJni.openPlugin(TestData.libraries.path("mote_ort").toByteArray())
            assertTrue(plugin != 0L)
            assertFalse(MoteJni.startRecording(plugin, 0))
            assertFalse(MoteJni.startRecording(plugin, -1))
            assertEquals(-1, MoteJni.readRoutes(plugin, 0, ByteBuffer.allocate(24)))
            assertEquals(-1, MoteJni.readRoutes(plugin, -1, ByteBuffer.allocateDirect(24)))
            assertEquals(0, MoteJni.readRoutes(plugin, 0, ByteBuffer.allocateDirect(23)))
            assertTrue(MoteJni.startRecording(plugin, 50))
            it.ask(GenerationRequest("x", maxNewTokens = 1))
            assertEquals("50 are too few for an answer", -1, MoteJni.stopRecording(plugin))
            assertTrue(MoteJni.startRecording(plugin, 100_000))
            it.ask(GenerationRequest("x", maxNewTokens = 1))
            assertTrue(MoteJni.stopRecording(plugin) > 0)
            val routes = ByteBuffer.allocateDirect(24 * 1000)
            assertTrue(MoteJni.readRoutes(plugin, 0, routes) in 1..1000)
            MoteJni.closePlugin(plugin)
            MoteJni.openPlugin(TestData.libraries.path("mote_ort").toByteArray()).let { again ->
                assertEquals("what was recorded is gone", 0, MoteJni.readRoutes(again, 0, routes))
                MoteJni.closePlugin(again)
            }
        }
    }

    private fun text(error: ByteArray?): String = decodeUtf8(error!!)

    private fun open(): Long {
        val image = manifest.image!!
        val out = LongArray(3)
        val sizes = intArrayOf(1, model.contextLength, 3, image.height, image.width)
        val plugin = TestData.libraries.path("mote_executorch")
        assertNull(ExecuTorchJni.open(folder.path.toByteArray(), plugin.toByteArray(), sizes, out))
        assertEquals(listOf(model.hiddenSize.toLong(), model.vocabSize.toLong()), out.drop(1))
        return out[0]
    }

    @Test
    fun executorchIsOpenedWithWhatItsFilesSay() {
        val plugin = TestData.libraries.path("mote_executorch").toByteArray()
        fun refusal(path: String, sizes: IntArray, out: LongArray): String {
            val error = ExecuTorchJni.open(path.toByteArray(), plugin, sizes, out)
            assertEquals(0L, out.firstOrNull() ?: 0L)
            return text(error)
        }
        val good = intArrayOf(1, 16, 0, 0, 0)
        assertTrue("does not exist" in refusal("/nowhere/ \u00e4\ud83d\ude00", good, LongArray(3)))
        assertTrue("five sizes" in refusal(folder.path, intArrayOf(1), LongArray(3)))
        assertTrue("three results" in refusal(folder.path, good, LongArray(0)))
        assertTrue("negative" in refusal(folder.path, intArrayOf(-1, 16, 0, 0, 0), LongArray(3)))
        val sentence = refusal(folder.path, intArrayOf(1, 16, 3, 7, 7), LongArray(3))
        assertTrue(sentence, "vision_encoder has shape" in sentence)
    }

    @Test
    fun executorchTakesOnlyBuffersThatFit() {
        val handle = open()
        val vocab = model.vocabSize.toLong()
        val logits = Buffers.floats(vocab)
        val pad = model.imageTokenId!!.toLong()
        fun prefill(ids: LongArray, features: FloatBuffer?, out: FloatBuffer = logits) =
            ExecuTorchJni.prefill(handle, ids, pad, features, out)
        assertNull(prefill(longArrayOf(1, 2, 3), null))
        assertTrue("no tokens" in text(prefill(LongArray(0), null)))
        assertTrue("token id $vocab is not in the vocabulary" in text(prefill(longArrayOf(vocab), null)))
        assertTrue("token id -1" in text(prefill(longArrayOf(-1), null)))
        assertTrue("no direct buffer" in text(prefill(longArrayOf(1), null, FloatBuffer.allocate(model.vocabSize))))
        assertTrue("holds 3 values, expected $vocab" in text(prefill(longArrayOf(1), null, Buffers.floats(3))))
        assertTrue("holds 1 values, expected ${model.hiddenSize}" in text(prefill(longArrayOf(pad), Buffers.floats(1))))
        assertTrue("buffer of features" in text(prefill(longArrayOf(1), Buffers.floats(model.hiddenSize.toLong()))))
        assertTrue("do not fit the context" in text(prefill(LongArray(model.contextLength), null)))
        val image = manifest.image!!
        val pixels = Buffers.floats(3L * image.height * image.width)
        val features = Buffers.floats(model.numImageTokens!!.toLong() * model.hiddenSize)
        assertNull(ExecuTorchJni.encodeImages(handle, pixels, 1, features))
        assertTrue("pixel_values holds" in text(ExecuTorchJni.encodeImages(handle, pixels, 2, features)))
        assertTrue("takes no images" in text(ExecuTorchJni.encodeImages(handle, pixels, 0, features)))
        assertTrue("takes no images" in text(ExecuTorchJni.encodeImages(handle, pixels, -1, features)))
        assertTrue("buffer for features" in text(ExecuTorchJni.encodeImages(handle, pixels, 1, pixels)))
        ExecuTorchJni.reset(handle)
        ExecuTorchJni.trim(handle)
        assertNull(prefill(longArrayOf(1, 2, 3), null))
        ExecuTorchJni.close(handle)
    }

    @Test
    fun executorchsThreadsDoNotChangeWhileAModelIsOpen() {
        ExecuTorchEngine(manifest, TestData.libraries, 2).use { first ->
            ExecuTorchEngine(manifest, TestData.libraries, 2).close()
            ExecuTorchEngine(manifest, TestData.libraries, null).close()
            val sentence = sentenceOf { ExecuTorchEngine(manifest, TestData.libraries, 1) }
            assertTrue(sentence, "threads is 1; expected 2, as another model is open" in sentence)
            first.close() // closing again does nothing, and the model counts once
        }
        ExecuTorchEngine(manifest, TestData.libraries, 1).close()
        ExecuTorchEngine(manifest, TestData.libraries, null).use {
            assertTrue("threads is 2; expected 1" in sentenceOf { ExecuTorchEngine(manifest, TestData.libraries, 2) })
        }
    }

    @Test
    fun aClosedModelSaysSo() {
        val logits = Buffers.floats(model.vocabSize.toLong())
        assertTrue("is closed" in text(ExecuTorchJni.prefill(0, longArrayOf(1), 0, null, logits)))
        assertTrue("is closed" in text(ExecuTorchJni.encodeImages(0, logits, 1, logits)))
        ExecuTorchJni.reset(0)
        ExecuTorchJni.trim(0)
        ExecuTorchJni.close(0)
    }

    @Test
    fun bothEnginesTakeAPromptOfTheWholeContext() {
        val ids = LongArray(model.contextLength) { (it * 31L) % 256 }
        val choices = Runtime.entries.map { runtime ->
            val manifest = Manifest.read(File(TestData.model, runtime.subfolder))
            val engine = when (runtime) {
                Runtime.ONNX_RUNTIME -> OrtEngine(manifest, TestData.libraries, 2)
                Runtime.EXECUTORCH -> ExecuTorchEngine(manifest, TestData.libraries, 2)
            }
            engine.use {
                ExpertRecorder.attach(TestData.libraries.path(runtime.plugin), manifest.moe)!!.use { recorder ->
                    recorder.record(ids.size) { engine.prefill(ids, null) }
                    assertTrue("do not fit the context" in sentenceOf { engine.step(1) })
                    if (engine is OrtEngine) assertTrue("the arena was not shrunk", engine.canShrink)
                    val choices = recorder.choices(ids.map { TokenLabel("", TokenKind.PROMPT) })
                    choices.layers.indices.flatMap { layer -> ids.indices.map { choices.expert(layer, it) } }
                }
            }
        }
        assertTrue(choices[0].all { it >= 0 })
        assertEquals(choices[0], choices[1])
    }
}
