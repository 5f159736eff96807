package org.mote.engine

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.security.MessageDigest
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

/** Equal to mote_runtime.preprocess to the last bit, on what tests/android_golden.py wrote. */
class ImagePreprocessorTest {
    private val golden = TestData.goldenJson("pixels.json").asMap()

    private fun spec(document: Any?): ImageSpec {
        val fields = Fields(document.asMap(), "golden")
        return ImageSpec(
            fields.integer("height", 1, 4096),
            fields.integer("width", 1, 4096),
            fields.number("rescale_factor"),
            fields.threeNumbers("mean"),
            fields.threeNumbers("std"),
        )
    }

    private fun pixels(spec: ImageSpec, width: Int, height: Int): FloatArray {
        val out = FloatBuffer.allocate(3 * spec.height * spec.width)
        ImagePreprocessor(spec).preprocess(TestData.noisePicture(width, height), out)
        assertEquals(0, out.remaining())
        return out.array()
    }

    @Test
    fun everySizeGivesTheSameBits() {
        val spec = spec(golden["spec"])
        val expected = ByteBuffer.wrap(TestData.golden("pixels.bin")).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
        for ((width, height) in golden["sizes"].asList().map { it.asInts() }) {
            val found = pixels(spec, width, height)
            for (index in found.indices) {
                val want = expected.get()
                assertEquals("$width x $height, value $index", want.toRawBits(), found[index].toRawBits())
            }
        }
        assertEquals(0, expected.remaining())
    }

    @Test
    fun aLargePictureGivesTheSameBits() {
        val large = golden["large"].asMap()
        val (width, height) = large["size"].asInts()
        val found = pixels(spec(large["spec"]), width, height)
        val bytes = ByteBuffer.allocate(4 * found.size).order(ByteOrder.LITTLE_ENDIAN)
        bytes.asFloatBuffer().put(found)
        val digest = MessageDigest.getInstance("SHA-256").digest(bytes.array()).joinToString("") { "%02x".format(it) }
        assertEquals(large["sha256"], digest)
    }

    @Test
    fun anImageHasAsManyBytesAsItsSizeSays() {
        assertThrows(IllegalArgumentException::class.java) { RgbImage(2, 2, ByteArray(11)) }
        assertThrows(IllegalArgumentException::class.java) { RgbImage(0, 2, ByteArray(0)) }
        assertThrows(IllegalArgumentException::class.java) { RgbImage(1 shl 16, 1 shl 16, ByteArray(0)) }
    }
}
