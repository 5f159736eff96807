package org.mote.engine

/**
 * What a model can run in.
 *
 * @property id as in `mote.json` and in profiles.
 * @property subfolder where `mote-export --target all` puts the export for it.
 * @property plugin the library with the operators of the experts.
 */
enum class Runtime(val id: String, internal val subfolder: String, internal val plugin: String) {
    ONNX_RUNTIME("onnxruntime", "onnx", "mote_ort"),
    EXECUTORCH("executorch", "executorch", "mote_executorch"),
}

/**
 * How a model is opened.
 *
 * @property threads of the runtime, 1 to 1024; null leaves the number to the runtime.
 * @property verify compares the SHA-256 sums of all files with the manifest; their sizes are compared in any case.
 */
data class EngineOptions(val threads: Int? = null, val verify: Boolean = true)
