package org.mote.engine

import java.io.File
import java.io.IOException

// The limits of mote_runtime/manifest.py: what one of both refuses, the other one refuses too.
private const val FORMAT = "mote-export"
private const val FORMAT_VERSION = 2
private const val LAYOUT_VERSION = 1
private val PACKINGS = listOf("2bit", "1.6bit")
private val SHARED_EXPERTS = listOf("float32", "bf16", "int8", "int4")
private const val GROUPED_SHARED_EXPERT = "int4"
private val SHARED_GROUP_SIZES = intArrayOf(32, 64, 128, 256)

private const val MAX_MANIFEST_BYTES = 16L shl 20
private const val MAX_DIMENSION = 1 shl 20
private const val MAX_LAYERS = 4096
private const val MAX_VOCAB = 1 shl 24
private const val MAX_CONTEXT = 1 shl 24
private const val MAX_EXPERTS = 256
private const val MAX_EOS_TOKENS = 64
private const val MAX_IMAGE_SIDE = 4096
private const val MAX_TEXT = 1 shl 16
private const val MAX_FILES = 4096
private const val MAX_FILE_BYTES = 1L shl 50

private val PLAIN_NAME = Regex("[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
private val SHA256 = Regex("[0-9a-f]{64}")

private val REQUIRED_FILES = mapOf(
    Runtime.ONNX_RUNTIME to listOf("embedding.onnx", "model.onnx", "tokenizer.json"),
    Runtime.EXECUTORCH to listOf("model.pte", "tokenizer.json"),
)

internal fun readManifest(folder: File): Manifest {
    if (!folder.isDirectory) {
        val found = if (folder.exists()) "is not a folder" else "does not exist"
        throw MoteException("$folder $found; expected a folder written by mote-export")
    }
    val document = readDocument(folder)
    if (document is Map<*, *>) return parseManifest(folder, document)
    throw MoteException("$MANIFEST_NAME in $folder holds ${shown(document)}; expected a JSON object")
}

/** Checks the content of a `mote.json`. */
internal fun parseManifest(folder: File, document: Map<*, *>): Manifest = parse(folder, Fields(document, MANIFEST_NAME))

private fun readDocument(folder: File): Any? {
    val file = File(folder, MANIFEST_NAME)
    if (!file.exists()) {
        throw MoteException(
            "$folder has no $MANIFEST_NAME; expected a folder written by mote-export " +
                "(with --target all these are its subfolders onnx and executorch)",
        )
    }
    val size = regularFileSize(folder, MANIFEST_NAME)
    if (size > MAX_MANIFEST_BYTES) {
        throw MoteException("$file has $size bytes; a manifest has at most $MAX_MANIFEST_BYTES")
    }
    try {
        return StrictJson.parse(file.readBytes())
    } catch (error: IOException) {
        throw MoteException("$file is not a readable JSON document: ${shown(error.message)}", error)
    }
}

private fun parse(folder: File, top: Fields): Manifest {
    top.choice("format", listOf(FORMAT))
    top.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
    val target = top.choice("target", REQUIRED_FILES.keys.map { it.id })
    val runtime = REQUIRED_FILES.keys.first { it.id == target }
    val image = top.optionalSection("image")?.let(::parseImage)
    val model = parseModel(top.section("model"), image != null)
    // Only reported, never acted on.
    for (key in listOf("memory", "verification", "source", "versions")) top.optionalSection(key)
    return Manifest(
        folder = folder,
        runtime = runtime,
        model = model,
        moe = parseMoe(top.section("moe"), model.numHiddenLayers),
        image = image,
        prompt = parsePrompt(top.section("prompt"), image != null),
        pluginLibrary = top.optionalSection("plugin")?.let(::parsePlugin),
        files = parseFiles(top.section("files"), runtime, image != null),
    )
}

private fun parseModel(section: Fields, hasImage: Boolean): ModelSpec {
    val vocabSize = section.integer("vocab_size", 1, MAX_VOCAB)
    val lastId = vocabSize - 1
    val numAttentionHeads = section.integer("num_attention_heads", 1, MAX_DIMENSION)
    val numKeyValueHeads = section.integer("num_key_value_heads", 1, numAttentionHeads)
    if (numAttentionHeads % numKeyValueHeads != 0) {
        throw section.refuse("num_key_value_heads", "a divisor of num_attention_heads, $numAttentionHeads")
    }
    val contextLength = section.integer("context_length", 1, MAX_CONTEXT)
    val model = ModelSpec(
        name = section.text("name", MAX_TEXT),
        architecture = section.text("architecture", MAX_TEXT),
        vocabSize = vocabSize,
        hiddenSize = section.integer("hidden_size", 1, MAX_DIMENSION),
        numHiddenLayers = section.integer("num_hidden_layers", 1, MAX_LAYERS),
        numAttentionHeads = numAttentionHeads,
        numKeyValueHeads = numKeyValueHeads,
        headDim = section.integer("head_dim", 1, MAX_DIMENSION),
        contextLength = contextLength,
        eosTokenIds = section.integers("eos_token_ids", 0, lastId, MAX_EOS_TOKENS).toSet(),
        bosTokenId = section.optionalInteger("bos_token_id", 0, lastId),
        padTokenId = section.optionalInteger("pad_token_id", 0, lastId),
        imageTokenId = section.optionalInteger("image_token_id", 0, lastId),
        visionStartTokenId = section.optionalInteger("vision_start_token_id", 0, lastId),
        visionEndTokenId = section.optionalInteger("vision_end_token_id", 0, lastId),
        numImageTokens = section.optionalInteger("num_image_tokens", 1, contextLength),
    )
    for (key in listOf("image_token_id", "num_image_tokens")) {
        if (section.isNull(key) == hasImage) {
            throw section.refuse(key, if (hasImage) "an integer, as there is an image section" else "null without one")
        }
    }
    return model
}

private fun parseMoe(section: Fields, numHiddenLayers: Int): MoeSpec {
    val numExperts = section.integer("num_experts", 1, MAX_EXPERTS)
    val sharedExpert = section.choice("shared_expert", SHARED_EXPERTS)
    val groupSizes = if (sharedExpert == GROUPED_SHARED_EXPERT) SHARED_GROUP_SIZES else intArrayOf(0)
    section.integer("layout_version", LAYOUT_VERSION, LAYOUT_VERSION)
    return MoeSpec(
        layers = section.integers("layers", 0, numHiddenLayers - 1, numHiddenLayers),
        numExperts = numExperts,
        topK = section.integer("top_k", 1, numExperts),
        normalizeTopk = section.flag("normalize_topk"),
        intermediateSize = section.integer("intermediate_size", 1, MAX_DIMENSION),
        packing = section.choice("packing", PACKINGS),
        sharedExpert = sharedExpert,
        sharedGroupSize = section.integerOf("shared_group_size", *groupSizes),
    )
}

private fun parseImage(section: Fields): ImageSpec {
    section.choice("resample", listOf("bicubic"))
    val image = ImageSpec(
        height = section.integer("height", 1, MAX_IMAGE_SIDE),
        width = section.integer("width", 1, MAX_IMAGE_SIDE),
        rescaleFactor = section.number("rescale_factor"),
        mean = section.threeNumbers("mean"),
        std = section.threeNumbers("std"),
    )
    if (image.rescaleFactor <= 0) throw section.refuse("rescale_factor", "a number above 0")
    if (image.std.min() <= 0) throw section.refuse("std", "three numbers above 0")
    return image
}

private fun parsePrompt(section: Fields, hasImage: Boolean): PromptSpec {
    val image = section.optionalText("image", MAX_TEXT)
    if (hasImage && (image == null || image.split(IMAGE_PADS).size != 2)) {
        throw section.refuse("image", "a string that holds $IMAGE_PADS once")
    }
    return PromptSpec(section.text("user_prefix", MAX_TEXT), image, section.text("user_suffix", MAX_TEXT))
}

private fun parsePlugin(section: Fields): String {
    val library = section.text("library", MAX_TEXT)
    if (!PLAIN_NAME.matches(library)) throw section.refuse("library", "a plain file name")
    return library
}

private fun parseFiles(section: Fields, runtime: Runtime, hasImage: Boolean): Map<String, FileEntry> {
    val count = section.keys.size
    if (count > MAX_FILES) {
        throw MoteException("$MANIFEST_NAME: field 'files' lists $count files; expected at most $MAX_FILES")
    }
    val files = LinkedHashMap<String, FileEntry>()
    for (name in section.keys) {
        if (name !is String || !PLAIN_NAME.matches(name)) {
            throw MoteException(
                "$MANIFEST_NAME: field 'files' lists ${shown(name)}; expected a plain file name of the folder itself",
            )
        }
        val entry = section.section(name)
        val digest = entry.text("sha256", MAX_TEXT)
        if (!SHA256.matches(digest)) throw entry.refuse("sha256", "64 lower-case hexadecimal digits")
        files[name] = FileEntry(entry.long("bytes", 0L..MAX_FILE_BYTES), digest)
    }
    val vision = if (runtime == Runtime.ONNX_RUNTIME && hasImage) listOf("vision.onnx") else emptyList()
    for (name in REQUIRED_FILES.getValue(runtime) + vision) {
        if (name !in files) {
            throw MoteException("$MANIFEST_NAME: field 'files' lacks '$name', which ${runtime.id} needs")
        }
    }
    return files
}
