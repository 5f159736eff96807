package org.mote.engine

import java.nio.FloatBuffer

/** Pictures to `pixel_values`, as `mote_runtime.preprocess` makes them, to the last bit. */
class ImagePreprocessor(private val spec: ImageSpec) {
    /** float32 `[3, height, width]` of [image] into [out] from its position on, which moves behind it. */
    fun preprocess(image: RgbImage, out: FloatBuffer): Unit = TODO()
}
