package org.mote.demo.data

import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject
import org.mote.engine.FinishReason

/** Where an answer is. What is RUNNING in a file was cut off with its process. */
enum class TurnState { WAITING, RUNNING, DONE, FAILED, INTERRUPTED }

/**
 * A question and its answer.
 *
 * @property id of the turn in its chat, ascending.
 * @property picture name of a file in the chat's folder; null: a question without a picture.
 */
class Turn(val id: Int, val question: String) {
    var picture: String? = null
    var state = TurnState.WAITING
    var answer = ""
    var finishReason: FinishReason? = null

    /** One sentence of the engine, in state FAILED. */
    var error: String? = null
    var firstTokenMs = 0.0
    var tokensPerSecond = 0.0

    /** Whether a profile of the answer is kept, see [ChatStore.profile]. */
    var hasProfile = false

    val isOpen: Boolean get() = state == TurnState.WAITING || state == TurnState.RUNNING

    internal fun toJson(): JSONObject = JSONObject()
        .put("id", id)
        .put("question", question)
        .put("picture", picture ?: JSONObject.NULL)
        .put("state", state.name)
        .put("answer", answer)
        .put("finish_reason", finishReason?.name ?: JSONObject.NULL)
        .put("error", error ?: JSONObject.NULL)
        .put("first_token_ms", firstTokenMs)
        .put("tokens_per_second", tokensPerSecond)
        .put("has_profile", hasProfile)

    internal companion object {
        fun fromJson(json: JSONObject) = Turn(json.getInt("id"), json.getString("question")).apply {
            picture = json.text("picture")
            state = enumOf<TurnState>(json.text("state")) ?: TurnState.INTERRUPTED
            if (isOpen) state = TurnState.INTERRUPTED
            answer = json.getString("answer")
            finishReason = enumOf<FinishReason>(json.text("finish_reason"))
            error = json.text("error")
            firstTokenMs = json.getDouble("first_token_ms")
            tokensPerSecond = json.getDouble("tokens_per_second")
            hasProfile = json.getBoolean("has_profile")
        }
    }
}

/** A conversation: questions that belong together for the user; the model sees each of them alone. */
class Chat(val id: String, val createdMs: Long) {
    val turns = ArrayList<Turn>()

    fun add(question: String): Turn = Turn((turns.lastOrNull()?.id ?: 0) + 1, question).also { turns += it }

    internal fun toJson(): JSONObject = JSONObject()
        .put("format_version", FORMAT_VERSION)
        .put("id", id)
        .put("created_ms", createdMs)
        .put("turns", JSONArray(turns.map { it.toJson() }))

    internal companion object {
        private const val FORMAT_VERSION = 1

        /** Throws [JSONException] for what is no chat. */
        fun fromJson(id: String, json: JSONObject): Chat {
            if (json.getInt("format_version") != FORMAT_VERSION) throw JSONException("an unknown version")
            val chat = Chat(id, json.getLong("created_ms"))
            val turns = json.getJSONArray("turns")
            for (index in 0 until turns.length()) chat.turns += Turn.fromJson(turns.getJSONObject(index))
            return chat
        }
    }
}

private fun JSONObject.text(name: String): String? = if (isNull(name)) null else getString(name)

private inline fun <reified T : Enum<T>> enumOf(name: String?): T? = enumValues<T>().firstOrNull { it.name == name }
