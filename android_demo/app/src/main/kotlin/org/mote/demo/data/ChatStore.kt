package org.mote.demo.data

import java.io.File
import java.io.IOException
import java.security.MessageDigest
import org.json.JSONException
import org.json.JSONObject

/**
 * Chats on disk, a folder each: `chat.json`, its pictures, and of each answer the profile and the experts' choices.
 *
 * Every file is written atomically. Blocking; for one thread at a time, which [org.mote.demo.DemoApplication.io] is.
 */
class ChatStore(private val folder: File) {
    /** What a list of chats shows. */
    class Summary(val id: String, val title: String, val picture: File?, val turns: Int, val changedMs: Long)

    fun save(id: String, json: String): Unit = File(folderOf(id), CHAT).writeAtomically(json)

    /** Null where there is no such chat, or its file is damaged. */
    fun load(id: String): Chat? {
        if (!NAME.matches(id)) return null
        return try {
            Chat.fromJson(id, JSONObject(File(folderOf(id), CHAT).readBounded(MAX_BYTES)))
        } catch (_: IOException) {
            null
        } catch (_: JSONException) {
            null
        }
    }

    /** The newest first; what cannot be read is left out. */
    fun list(): List<Summary> =
        folder.list().orEmpty().filterNot(::isUnfinished).mapNotNull(::summary).sortedByDescending { it.changedMs }

    private fun summary(id: String): Summary? {
        val chat = load(id) ?: return null
        val first = chat.turns.firstOrNull() ?: return null
        val picture = chat.turns.firstNotNullOfOrNull { it.picture }?.let { File(folderOf(id), it) }
        return Summary(id, first.question, picture, chat.turns.size, File(folderOf(id), CHAT).lastModified())
    }

    fun delete(id: String): Unit = folderOf(id).deleteFolder()

    /** Keeps a picture of a chat and returns its name there; the same picture is kept once. Throws [IOException]. */
    fun keepPicture(id: String, bytes: ByteArray): String {
        val digest = MessageDigest.getInstance("SHA-256").digest(bytes)
        val name = "picture-" + digest.take(DIGEST_BYTES).joinToString("") { "%02x".format(it) }
        val file = File(folderOf(id), name)
        if (file.length() != bytes.size.toLong()) file.writeAtomically { it.write(bytes) }
        return name
    }

    fun picture(id: String, name: String): File = File(folderOf(id), name)

    /** The record of an answer as `mote-profile` reads it (docs/runner.md). */
    fun profile(id: String, turn: Int): File = File(folderOf(id), "turn-$turn.profile.json")

    /** The choices of experts, see [ExpertMap]. */
    fun experts(id: String, turn: Int): File = File(folderOf(id), "turn-$turn.experts.json")

    private fun folderOf(id: String): File {
        require(NAME.matches(id)) { "$id is no chat's name" }
        return File(folder, id)
    }

    companion object {
        private const val CHAT = "chat.json"
        const val MAX_BYTES = 16L shl 20
        private const val DIGEST_BYTES = 8
        private val NAME = Regex("chat-[0-9]{1,20}")

        fun newId(nowMs: Long): String = "chat-$nowMs"
    }
}
