package org.mote.engine

import android.graphics.Bitmap
import android.graphics.Color
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer
import java.util.zip.CRC32
import java.util.zip.Deflater
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config

/** On Android's own decoders, which Robolectric runs natively. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class BitmapImagesTest {
    private fun decode(bytes: ByteArray) = BitmapImages.decode { bytes.inputStream() }

    private fun compressed(bitmap: Bitmap, format: Bitmap.CompressFormat): ByteArray =
        ByteArrayOutputStream().also { bitmap.compress(format, 100, it) }.toByteArray()

    /** Six squares of their own colours, 3 x 2, each a whole number of JPEG's blocks. */
    private val squares: Bitmap = Bitmap.createBitmap(3 * SIDE, 2 * SIDE, Bitmap.Config.ARGB_8888).also { bitmap ->
        for (y in 0 until bitmap.height) {
            for (x in 0 until bitmap.width) bitmap.setPixel(x, y, COLOURS[3 * (y / SIDE) + x / SIDE])
        }
    }

    /** The numbers of the squares of a picture, row by row. */
    private fun squaresOf(image: RgbImage): List<Int> {
        val centers = SIDE / 2
        return (0 until image.height / SIDE).flatMap { row ->
            (0 until image.width / SIDE).map { column ->
                val at = 3 * ((row * SIDE + centers) * image.width + column * SIDE + centers)
                val found = (0 until 3).map { image.bytes[at + it].toInt() and 0xff }
                COLOURS.indexOfFirst { colour ->
                    (0 until 3).all { (colour shr (16 - 8 * it) and 0xff) - found[it] in -8..8 }
                }
            }
        }
    }

    private fun withOrientation(jpeg: ByteArray, orientation: Int): ByteArray {
        val tiff = ByteBuffer.allocate(26) // one field in big endian: tag 274, one SHORT
        tiff.put("MM".toByteArray()).putShort(42).putInt(8).putShort(1)
        tiff.putShort(274).putShort(3).putInt(1).putShort(orientation.toShort()).putShort(0).putInt(0)
        val exif = "Exif\u0000\u0000".toByteArray() + tiff.array()
        val header = ByteBuffer.allocate(4).putShort(0xffe1.toShort()).putShort((exif.size + 2).toShort()).array()
        return jpeg.copyOfRange(0, 2) + header + exif + jpeg.copyOfRange(2, jpeg.size)
    }

    @Test
    fun aPhotographIsTurnedUpright() {
        val jpeg = compressed(squares, Bitmap.CompressFormat.JPEG)
        val upright = mapOf( // EXIF's eight ways to hold a camera
            1 to listOf(0, 1, 2, 3, 4, 5),
            2 to listOf(2, 1, 0, 5, 4, 3),
            3 to listOf(5, 4, 3, 2, 1, 0),
            4 to listOf(3, 4, 5, 0, 1, 2),
            5 to listOf(0, 3, 1, 4, 2, 5),
            6 to listOf(3, 0, 4, 1, 5, 2),
            7 to listOf(5, 2, 4, 1, 3, 0),
            8 to listOf(2, 5, 1, 4, 0, 3),
        )
        for ((orientation, expected) in upright) {
            val bytes = withOrientation(jpeg, orientation)
            for (image in listOf(decode(bytes), BitmapImages.decodeAndTurn(bytes))) {
                assertEquals("$orientation", expected, squaresOf(image))
                assertEquals(if (orientation < 5) 3 * SIDE else 2 * SIDE, image.width)
            }
        }
    }

    @Test
    fun theSamplesAreDecodedAsElsewhere() {
        for (number in 0 until 8) {
            val expected = TestData.scene("scene-$number.png")
            val bytes = File(TestData.scenes, "scene-$number.png").readBytes()
            for (found in listOf(decode(bytes), BitmapImages.decodeAndTurn(bytes))) {
                assertEquals(expected.width to expected.height, found.width to found.height)
                assertArrayEquals(expected.bytes, found.bytes)
            }
        }
    }

    @Test
    fun transparentPixelsKeepTheirColours() {
        val rgba = byteArrayOf(0, 200.toByte(), 100, 50, 0, 10, 20, 30, 77) // filter, then two pixels
        for (image in listOf(decode(png(2, 1, rgba)), BitmapImages.decodeAndTurn(png(2, 1, rgba)))) {
            assertArrayEquals(byteArrayOf(200.toByte(), 100, 50, 10, 20, 30), image.bytes)
        }
    }

    private fun png(width: Int, height: Int, rows: ByteArray): ByteArray {
        val packed = ByteArray(1000)
        val deflater = Deflater().apply { setInput(rows); finish() }
        val size = deflater.deflate(packed)
        val header = ByteBuffer.allocate(13).putInt(width).putInt(height).put(8).put(6).put(0).put(0).put(0).array()
        fun chunk(kind: String, data: ByteArray): ByteArray {
            val body = kind.toByteArray() + data
            val sum = CRC32().apply { update(body) }.value.toInt()
            return ByteBuffer.allocate(8 + body.size).putInt(data.size).put(body).putInt(sum).array()
        }
        val signature = byteArrayOf(0x89.toByte()) + "PNG\r\n\u001a\n".toByteArray()
        return signature + chunk("IHDR", header) + chunk("IDAT", packed.copyOf(size)) + chunk("IEND", ByteArray(0))
    }

    /** A picture that no format makes small. */
    private fun noise(side: Int): Bitmap = Bitmap.createBitmap(side, side, Bitmap.Config.ARGB_8888).also { bitmap ->
        TestData.noise(side * side, 3).forEachIndexed { index, byte ->
            val colour = Color.rgb(byte.toInt() and 0xff, index and 0xff, index shr 3 and 0xff)
            bitmap.setPixel(index % side, index / side, colour)
        }
    }

    @Test
    fun whatIsNoPictureIsRefusedInASentence() {
        val jpeg = compressed(squares, Bitmap.CompressFormat.JPEG)
        val picture = compressed(noise(64), Bitmap.CompressFormat.PNG)
        for ((bytes, expected) in listOf(
            ByteArray(0) to "no picture",
            "no picture at all".toByteArray() to "no picture",
            jpeg.copyOf(20) to "no picture",
            ByteArray(5000) to "no picture",
            picture.copyOf(picture.size / 2) to "cut short",
            png(70_000, 70_000, ByteArray(10)) to "70000 x 70000 pixels",
            png(9_000, 9_000, ByteArray(10)) to "9000 x 9000 pixels",
            png(3, 3, ByteArray(10)) to "cut short",
        )) {
            val sentence = sentenceOf { decode(bytes) }
            assertTrue(sentence, expected in sentence && sentence.endsWith(".") && '\n' !in sentence)
        }
    }

    @Test
    fun aJpegThatWasCutShortIsRefused() {
        val jpeg = compressed(noise(256), Bitmap.CompressFormat.JPEG)
        assertEquals(256, decode(jpeg).width)
        assertTrue("cut short" in sentenceOf { decode(jpeg.copyOf(jpeg.size / 2)) })
    }

    @Test
    fun whatCannotBeReadIsRefusedInASentence() {
        assertTrue("no such file" in sentenceOf { BitmapImages.decode { null } })
        assertTrue("gone" in sentenceOf { BitmapImages.decode { throw IOException("gone") } })
        assertTrue("choose it again" in sentenceOf { BitmapImages.decode { throw SecurityException("no permission") } })
        val endless = object : InputStream() {
            override fun read(): Int = 0

            override fun read(buffer: ByteArray, offset: Int, length: Int): Int = length
        }
        assertTrue("larger than 64 MB" in sentenceOf { BitmapImages.decode { endless } })
    }

    private companion object {
        const val SIDE = 16
        val COLOURS = intArrayOf(Color.RED, Color.GREEN, Color.BLUE, Color.WHITE, Color.BLACK, Color.YELLOW)
    }
}
