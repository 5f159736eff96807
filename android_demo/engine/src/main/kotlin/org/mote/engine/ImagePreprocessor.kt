package org.mote.engine

import java.nio.FloatBuffer

/**
 * Pictures to `pixel_values`, to the last bit as `mote_runtime.preprocess` makes them: Pillow's bicubic resize in fixed
 * point to exactly height x width, the width first and rounded to bytes, then the height; times `rescale_factor` in
 * double, rounded to float; `(value - mean) / std` in float.
 */
class ImagePreprocessor(private val spec: ImageSpec) {
    // A channel's 256 bytes have 256 results.
    private val normalized = Array(CHANNELS) { channel ->
        val mean = spec.mean[channel].toFloat()
        val std = spec.std[channel].toFloat()
        FloatArray(256) { ((it * spec.rescaleFactor).toFloat() - mean) / std }
    }

    /** float32 `[3, height, width]` of [image] into [out] from its position on, which moves behind it. */
    fun preprocess(image: RgbImage, out: FloatBuffer) {
        val bytes = resize(image, spec.width, spec.height).bytes
        for (channel in 0 until CHANNELS) {
            val values = normalized[channel]
            for (index in channel until bytes.size step CHANNELS) out.put(values[bytes[index].toInt() and 0xff])
        }
    }

    internal companion object {
        const val CHANNELS = 3

        fun resize(image: RgbImage, width: Int, height: Int): RgbImage {
            val narrow = if (width == image.width) image else resizeWidth(image, Coefficients(image.width, width))
            return if (height == image.height) narrow else resizeHeight(narrow, Coefficients(image.height, height))
        }

        private fun resizeWidth(image: RgbImage, kernel: Coefficients): RgbImage {
            val size = CHANNELS.toLong() * image.height * kernel.outSize
            if (size > Int.MAX_VALUE) {
                val found = "${image.width} x ${image.height} pixels"
                throw MoteException("the picture is $found, too tall to be resized; take another one")
            }
            val out = ByteArray(size.toInt())
            var o = 0
            for (y in 0 until image.height) {
                val row = y * image.width * CHANNELS
                for (x in 0 until kernel.outSize) {
                    val first = row + kernel.first[x] * CHANNELS
                    for (channel in 0 until CHANNELS) {
                        out[o++] = kernel.apply(x, image.bytes, first + channel, CHANNELS)
                    }
                }
            }
            return RgbImage(kernel.outSize, image.height, out)
        }

        private fun resizeHeight(image: RgbImage, kernel: Coefficients): RgbImage {
            val row = image.width * CHANNELS
            val out = ByteArray(kernel.outSize * row)
            var o = 0
            for (y in 0 until kernel.outSize) {
                val first = kernel.first[y] * row
                for (x in 0 until row) out[o++] = kernel.apply(y, image.bytes, first + x, row)
            }
            return RgbImage(image.width, kernel.outSize, out)
        }
    }
}

/**
 * Weights of Keys' cubic convolution (IEEE TASSP 29, 1981; a = -0.5), widened by the scale where a side shrinks: for
 * each output pixel those of the input pixels from `first` on, in fixed point of 22 bits, as Pillow has them.
 */
private class Coefficients(inSize: Int, val outSize: Int) {
    val first = IntArray(outSize)
    private val weights: Array<IntArray>

    init {
        val scale = inSize.toDouble() / outSize
        val stretch = maxOf(scale, 1.0)
        val support = SUPPORT * stretch
        weights = Array(outSize) { index ->
            val center = (index + 0.5) * scale
            first[index] = maxOf(0, (center - support + 0.5).toInt())
            val count = minOf(inSize, (center + support + 0.5).toInt()) - first[index]
            val exact = DoubleArray(count) { cubic((it + first[index] - center + 0.5) * (1.0 / stretch)) }
            var sum = 0.0
            for (weight in exact) sum += weight
            IntArray(count) { fixed(if (sum != 0.0) exact[it] / sum else exact[it]) }
        }
    }

    private fun cubic(distance: Double): Double {
        val x = if (distance < 0) -distance else distance
        return when {
            x < 1 -> ((A + 2) * x - (A + 3)) * x * x + 1
            x < 2 -> (((x - 5) * x + 8) * x - 4) * A
            else -> 0.0
        }
    }

    private fun fixed(weight: Double): Int = (weight * ONE + if (weight < 0) -0.5 else 0.5).toInt()

    /** The output at [index] of bytes that lie [stride] apart from [start] on. */
    fun apply(index: Int, bytes: ByteArray, start: Int, stride: Int): Byte {
        var sum = ONE / 2
        var position = start
        for (weight in weights[index]) {
            sum += weight * (bytes[position].toInt() and 0xff)
            position += stride
        }
        return (sum shr PRECISION_BITS).coerceIn(0, 255).toByte()
    }

    private companion object {
        const val A = -0.5
        const val SUPPORT = 2.0
        const val PRECISION_BITS = 22 // a byte, a sign and a spare bit of 32
        const val ONE = 1 shl PRECISION_BITS
    }
}
