package org.mote.engine

/** A picture in memory: uint8 RGB, row by row from the top, [bytes] of [height] x [width] x 3. */
class RgbImage(val width: Int, val height: Int, val bytes: ByteArray) {
    init {
        require(width > 0 && height > 0 && bytes.size.toLong() == 3L * width * height) {
            "an image of $width x $height pixels has ${3L * width * height} bytes, not ${bytes.size}"
        }
    }
}
