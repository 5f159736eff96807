package org.mote.engine

import ai.onnxruntime.NodeInfo
import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import android.system.ErrnoException
import android.system.Os
import java.nio.Buffer
import java.nio.ByteBuffer
import java.nio.FloatBuffer
import java.nio.LongBuffer

/**
 * `vision.onnx`, `embedding.onnx` and `model.onnx` of a folder, opened by path, so that weights are mapped and not
 * copied.
 *
 * Keys and values, float32 or int8, lie in one buffer of context length for each layer and side, given to the decoder
 * as past and as present at once: GroupQueryAttention appends in place and a step copies nothing. A run over a prompt
 * shrinks ONNX Runtime's arena behind it, as its activations are many times those of a step.
 */
class OrtEngine(private val manifest: Manifest, libraries: NativeLibraries, threads: Int?) : MoteEngine {
    private val model = manifest.model
    private val environment = openEnvironment()
    private val owned = ArrayList<AutoCloseable>()
    private lateinit var decoder: OrtSession
    private lateinit var embedding: OrtSession
    private var vision: OrtSession? = null
    private lateinit var shrinking: OrtSession.RunOptions
    private val caches = ArrayList<NativeMemory>()
    private val decoderInputs = HashMap<String, OnnxTensor>()
    private val decoderOutputs = HashMap<String, OnnxTensor>()
    private lateinit var mask: LongBuffer
    private lateinit var ids: LongBuffer
    private lateinit var logits: FloatBuffer
    private val noFeatures = Buffers.floats(0L)
    private var embeddings = Buffers.floats(0L)
    private var features = Buffers.floats(0L)
    private var position = 0

    /** Whether ONNX Runtime has an arena here that a run can shrink; found out by the first run that asks for it. */
    internal var canShrink = true
        private set

    override val runtime = Runtime.ONNX_RUNTIME
    override val runtimeVersion: String get() = environment.version

    init {
        var opened = false
        try {
            ort("load the model in ${manifest.folder}") { open(libraries, threads) }
            opened = true
        } finally {
            if (!opened) close()
        }
    }

    private fun open(libraries: NativeLibraries, threads: Int?) {
        libraries.load(NativeLibraries.SUPPORT)
        val plugin = manifest.pluginLibrary?.let { libraries.path(runtime.plugin) }
        decoder = openSession("model.onnx", threads, plugin)
        // The embedding graph only gathers rows: threads of its own would wait for work that never comes.
        embedding = openSession("embedding.onnx", 1, null)
        if (manifest.image != null) vision = openSession("vision.onnx", threads, plugin)
        checkGraphs()
        logits = Buffers.floats(model.vocabSize.toLong())
        bindBuffers()
        mask = Buffers.longs(model.contextLength.toLong())
        for (i in 0 until model.contextLength) mask.put(i, 1)
        ids = Buffers.longs(model.contextLength.toLong())
        shrinking = OrtSession.RunOptions().also { owned += it }
        shrinking.addRunConfigEntry("memory.enable_memory_arena_shrinkage", "cpu:0")
    }

    private fun openSession(name: String, threads: Int?, plugin: String?): OrtSession {
        val path = manifest.path(name)
        OrtSession.SessionOptions().use { options ->
            // Failures arrive as exceptions; the library's own lines beside them are for its developers.
            options.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL)
            if (threads != null) options.setIntraOpNumThreads(threads)
            if (plugin != null) ort("load the plugin $plugin") { options.registerCustomOpLibrary(plugin) }
            return ort("load $path") { environment.createSession(path.path, options) }.also { owned += it }
        }
    }

    /** Compares the graphs with the manifest, before a wrong shape is read or written by anyone. */
    private fun checkGraphs() {
        val hidden = model.hiddenSize
        val cache = ValueShape(cacheType(), listOf(1, model.numKeyValueHeads, ANY, model.headDim))
        val past = cacheNames("past_key_values").associateWith { cache }
        val present = cacheNames("present").associateWith { cache }
        val inputs = mapOf("inputs_embeds" to floats(1, ANY, hidden), "attention_mask" to longs(1, ANY)) + past
        checkValues("model.onnx", "inputs", decoder.inputInfo, inputs)
        checkValues("model.onnx", "outputs", decoder.outputInfo, present + ("logits" to floats(1, 1, model.vocabSize)))
        val features = if (vision == null) emptyMap() else mapOf("image_features" to floats(ANY, hidden))
        checkValues("embedding.onnx", "inputs", embedding.inputInfo, mapOf("input_ids" to longs(1, ANY)) + features)
        checkValues("embedding.onnx", "outputs", embedding.outputInfo, mapOf("inputs_embeds" to floats(1, ANY, hidden)))
        val image = manifest.image ?: return
        val session = vision ?: return
        val pixels = floats(1, ANY, ImagePreprocessor.CHANNELS, image.height, image.width)
        checkValues("vision.onnx", "inputs", session.inputInfo, mapOf("pixel_values" to pixels))
        checkValues("vision.onnx", "outputs", session.outputInfo, features)
    }

    /** What the graph keeps keys and values in; where that is neither, the comparison of its inputs says so. */
    private fun cacheType(): OnnxJavaType {
        val first = decoder.inputInfo[cacheNames("past_key_values").first()]?.info as? TensorInfo
        return if (first?.type == OnnxJavaType.INT8) OnnxJavaType.INT8 else OnnxJavaType.FLOAT
    }

    private fun bindBuffers() {
        val shape = shapeOf(1, model.numKeyValueHeads, model.contextLength, model.headDim)
        // What is beyond a buffer already is not multiplied on: each factor is checked, but not their product.
        val type = cacheType()
        val bytes = shape.fold(type.size.toLong()) { product, size ->
            if (product > Int.MAX_VALUE) product else product * size
        }
        cacheNames("past_key_values").zip(cacheNames("present")).forEach { (past, present) ->
            val memory = NativeMemory.allocate(bytes) ?: throw MoteException(
                "no memory for the KV cache: ${2 * model.numHiddenLayers} buffers of ${shape.toList()} $type " +
                    "values; export with a shorter context",
            )
            caches += memory
            val tensor = tensor(memory.bytes, shape, type).also { owned += it }
            decoderInputs[past] = tensor
            decoderOutputs[present] = tensor
        }
        decoderOutputs["logits"] = tensor(logits, shapeOf(1, 1, model.vocabSize)).also { owned += it }
    }

    private fun cacheNames(prefix: String): List<String> =
        (0 until model.numHiddenLayers).flatMap { listOf("$prefix.$it.key", "$prefix.$it.value") }

    override fun encodeImages(pixelValues: FloatBuffer, count: Int): FloatBuffer {
        val session = vision ?: throw MoteException("this export has no vision.onnx")
        val image = checkNotNull(manifest.image)
        val rows = count.toLong() * checkNotNull(model.numImageTokens)
        val hidden = model.hiddenSize.toLong()
        if (features.capacity().toLong() != rows * hidden) features = Buffers.floats(rows * hidden)
        val shape = shapeOf(1, count, ImagePreprocessor.CHANNELS, image.height, image.width)
        tensor(pixelValues, shape).use { pixels ->
            tensor(features, longArrayOf(rows, hidden)).use { output ->
                run(session, "vision.onnx", mapOf("pixel_values" to pixels), mapOf("image_features" to output), true)
            }
        }
        return features
    }

    override fun prefill(tokenIds: LongArray, features: FloatBuffer?): FloatBuffer {
        val count = tokenIds.size
        if (count == 0 || count > model.contextLength - position) {
            throw MoteException("$count tokens after $position do not fit the context of ${model.contextLength}")
        }
        embed(tokenIds, features ?: noFeatures)
        val total = position + count
        tensor(embeddings, shapeOf(1, count, model.hiddenSize)).use { input ->
            tensor(mask.limited(total), shapeOf(1, total)).use { valid ->
                decoderInputs["inputs_embeds"] = input
                decoderInputs["attention_mask"] = valid
                run(decoder, "model.onnx", decoderInputs, decoderOutputs, count > 1)
            }
        }
        position = total
        return logits
    }

    private fun embed(tokenIds: LongArray, features: FloatBuffer) {
        val count = tokenIds.size
        val hidden = model.hiddenSize.toLong()
        for (i in tokenIds.indices) ids.put(i, tokenIds[i])
        if (embeddings.capacity().toLong() != count * hidden) embeddings = Buffers.floats(count * hidden)
        val inputs = HashMap<String, OnnxTensor>()
        try {
            inputs["input_ids"] = tensor(ids.limited(count), shapeOf(1, count))
            if (vision != null) {
                inputs["image_features"] = tensor(features, longArrayOf(features.capacity() / hidden, hidden))
            }
            tensor(embeddings, shapeOf(1, count, model.hiddenSize)).use { output ->
                run(embedding, "embedding.onnx", inputs, mapOf("inputs_embeds" to output), false)
            }
        } finally {
            inputs.values.forEach { it.close() }
        }
    }

    override fun step(tokenId: Long): FloatBuffer = prefill(longArrayOf(tokenId), null)

    override fun reset() {
        position = 0 // the mask hides what is left in the buffers
    }

    override fun trimMemory() {
        embeddings = Buffers.floats(0L)
        features = Buffers.floats(0L)
        if (position == 0) caches.forEach { it.discard() }
    }

    override fun close() {
        for (resource in owned.asReversed()) {
            try {
                resource.close()
            } catch (_: OrtException) {
                // It is lost then, and nobody could do anything about it; the others are still to be closed.
            }
        }
        owned.clear()
        caches.forEach { it.close() }
        caches.clear()
    }

    private fun run(
        session: OrtSession,
        name: String,
        inputs: Map<String, OnnxTensor>,
        outputs: Map<String, OnnxTensor>,
        shrink: Boolean,
    ) {
        if (shrink && canShrink) {
            try {
                return session.run(inputs, emptySet(), outputs, shrinking).close()
            } catch (error: OrtException) {
                // A build without an arena refuses to shrink one, before it computes anything.
                if ("arena" !in error.message.orEmpty()) throw failed("run $name", error)
                canShrink = false
            }
        }
        ort("run $name") { session.run(inputs, outputs).close() }
    }

    private fun tensor(values: FloatBuffer, shape: LongArray): OnnxTensor =
        ort("make a tensor") { OnnxTensor.createTensor(environment, values, shape) }

    private fun tensor(values: LongBuffer, shape: LongArray): OnnxTensor =
        ort("make a tensor") { OnnxTensor.createTensor(environment, values, shape) }

    private fun tensor(values: ByteBuffer, shape: LongArray, type: OnnxJavaType): OnnxTensor =
        ort("make a tensor") { OnnxTensor.createTensor(environment, values, shape, type) }
}

private const val ANY = -1

/** Type and sizes of a graph's input or output; ANY stands for every size. */
private class ValueShape(val type: OnnxJavaType, val sizes: List<Int>) {
    fun fits(found: TensorInfo): Boolean = found.type == type && found.shape.size == sizes.size &&
        found.shape.zip(sizes).all { (size, want) -> size == ANY.toLong() || want == ANY || size == want.toLong() }

    override fun toString() = "$type $sizes"
}

private fun shapeOf(vararg sizes: Int): LongArray = LongArray(sizes.size) { sizes[it].toLong() }

private fun floats(vararg sizes: Int) = ValueShape(OnnxJavaType.FLOAT, sizes.toList())

private fun longs(vararg sizes: Int) = ValueShape(OnnxJavaType.INT64, sizes.toList())

private fun checkValues(graph: String, kind: String, found: Map<String, NodeInfo>, expected: Map<String, ValueShape>) {
    if (found.keys != expected.keys) {
        val extra = (found.keys - expected.keys).sorted().map(::shown)
        val missing = (expected.keys - found.keys).sorted()
        throw MoteException("$graph has other $kind than $MANIFEST_NAME says: extra $extra, missing $missing")
    }
    for ((name, shape) in expected) {
        val info = found.getValue(name).info as? TensorInfo ?: throw MoteException("$graph: $name is no tensor")
        if (!shape.fits(info)) {
            throw MoteException("$graph: $name is ${info.type} ${info.shape.toList()}, but $MANIFEST_NAME says $shape")
        }
    }
}

/** The first [count] values. As a Buffer, because LongBuffer itself has no such method before Android 9. */
private fun LongBuffer.limited(count: Int): LongBuffer = duplicate().also { (it as Buffer).limit(count) }

private inline fun <T> ort(what: String, call: () -> T): T = try {
    call()
} catch (error: OrtException) {
    throw failed(what, error)
}

private fun failed(what: String, error: OrtException) =
    MoteException("onnxruntime cannot $what: ${reason(error)}", error)

/**
 * What is asked of a model stays on the device; the library looks for this when it is first used, and its builds for
 * Android send too.
 */
private fun forbidTelemetry() {
    try {
        Os.setenv("ORT_DISABLE_TELEMETRY", "1", true)
    } catch (_: ErrnoException) {
        // No memory for a few bytes; setTelemetry follows.
    } catch (_: LinkageError) {
        // A JVM, which cannot change its environment: there whoever starts it sets the variable.
    }
}

/** One for the process, which ONNX Runtime never closes. */
private fun openEnvironment(): OrtEnvironment = try {
    forbidTelemetry()
    OrtEnvironment.getEnvironment().also { it.setTelemetry(false) }
} catch (error: LinkageError) {
    throw MoteException("onnxruntime cannot be loaded (${reason(error)}); add onnxruntime-android to the app", error)
} catch (error: OrtException) {
    throw MoteException("onnxruntime cannot be started: ${reason(error)}", error)
}
