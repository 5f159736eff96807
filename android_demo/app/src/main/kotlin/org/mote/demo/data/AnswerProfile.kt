package org.mote.demo.data

import org.json.JSONException
import org.json.JSONObject

/**
 * The figures of one answer, read from its record (docs/runner.md), so that what is shown is what is shared. Times in
 * ms.
 */
class AnswerProfile private constructor(record: JSONObject) {
    private val answer: JSONObject = record.getJSONArray("repetitions").getJSONObject(0)
    private val memory: JSONObject = record.getJSONObject("memory")

    val runtime: String = record.getString("runtime")
    val runtimeVersion: String = record.getString("runtime_version")

    /** Null: as the runtime chose. */
    val threads: Int? = if (record.isNull("threads")) null else record.getInt("threads")
    val loadMs: Double = record.getDouble("model_load_end_ms") - record.getDouble("model_load_start_ms")

    val encodeMs: Double = between("inference_start_ms", "token_encode_end_ms")
    val imageMs: Double = between("token_encode_end_ms", "image_encode_end_ms")
    val prefillMs: Double = between("image_encode_end_ms", "prompt_eval_end_ms")
    val decodeMs: Double = between("prompt_eval_end_ms", "inference_end_ms")
    val totalMs: Double = between("inference_start_ms", "inference_end_ms")
    val promptTokens: Int = answer.getInt("prompt_tokens")
    val generatedTokens: Int = answer.getInt("generated_tokens")
    val firstTokenMs: Double = if (generatedTokens > 0) between("inference_start_ms", "first_token_ms") else 0.0
    val prefillTokensPerSecond: Double = answer.getDouble("prefill_token_per_sec")
    val decodeTokensPerSecond: Double = answer.getDouble("decode_token_per_sec")
    val hasImage: Boolean = record.optInt("num_images") > 0

    val anonymousBytes: Long = memory.getLong("peak_anonymous_bytes")
    val fileBytes: Long = memory.getLong("peak_file_bytes")

    /** 0 where an answer ended before its later mark was set. */
    private fun between(first: String, second: String) = maxOf(0.0, answer.getDouble(second) - answer.getDouble(first))

    companion object {
        /** Throws [JSONException] for what is no record of an answer. */
        fun fromJson(text: String): AnswerProfile = AnswerProfile(JSONObject(text))
    }
}
