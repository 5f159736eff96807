package org.mote.demo.data

import android.content.Context
import android.content.SharedPreferences
import org.mote.engine.Runtime

/**
 * What the user chose, kept by the system in the app's private preferences. For the main thread.
 *
 * Whatever stands in the file is forced into its range when it is read, so no other code has to.
 */
class Settings(context: Context) {
    private val preferences: SharedPreferences = context.getSharedPreferences("settings", Context.MODE_PRIVATE)

    /** The runtime to take; null: the first that a model was exported for. */
    var runtime: Runtime?
        get() = Runtime.entries.firstOrNull { it.id == preferences.getString(RUNTIME, null) }
        set(value) = preferences.edit().putString(RUNTIME, value?.id).apply()

    /** Threads of the runtime, 1 to [maxThreads]; null: its own choice. */
    var threads: Int?
        get() = preferences.getInt(THREADS, 0).takeIf { it > 0 }?.coerceAtMost(maxThreads)
        set(value) = preferences.edit().putInt(THREADS, value ?: 0).apply()

    /** The longest answer in tokens, one of [ANSWER_LENGTHS]. */
    var maxNewTokens: Int
        get() = preferences.getInt(MAX_NEW_TOKENS, DEFAULT_LENGTH).let { kept ->
            ANSWER_LENGTHS.lastOrNull { it <= kept } ?: ANSWER_LENGTHS.first()
        }
        set(value) = preferences.edit().putInt(MAX_NEW_TOKENS, value).apply()

    /** 0 to [MAX_TEMPERATURE]. */
    var temperature: Double
        get() = preferences.getInt(TEMPERATURE, 0).coerceIn(0, TEMPERATURE_STEPS) * TEMPERATURE_STEP
        set(value) = preferences.edit().putInt(TEMPERATURE, Math.round(value / TEMPERATURE_STEP).toInt()).apply()

    /** Path of the chosen model's folder; null before the first choice. */
    var modelPath: String?
        get() = preferences.getString(MODEL, null)
        set(value) = preferences.edit().putString(MODEL, value).apply()

    /** The chosen picture, see [Pictures]. */
    var picture: String?
        get() = preferences.getString(PICTURE, null)
        set(value) = preferences.edit().putString(PICTURE, value).apply()

    /** The chat that was open last. */
    var chat: String?
        get() = preferences.getString(CHAT, null)
        set(value) = preferences.edit().putString(CHAT, value).apply()

    /** Whether the user wants the bundled model; not after deleting it. */
    var wantsBundled: Boolean
        get() = preferences.getBoolean(BUNDLED, true)
        set(value) = preferences.edit().putBoolean(BUNDLED, value).apply()

    /** Everything that the settings screen shows, as it was at first. */
    fun reset(): Unit =
        preferences.edit().remove(RUNTIME).remove(THREADS).remove(MAX_NEW_TOKENS).remove(TEMPERATURE).apply()

    companion object {
        val ANSWER_LENGTHS = listOf(8, 16, 32, 64, 128, 256, 512, 1024, 2048)
        const val TEMPERATURE_STEPS = 20
        const val TEMPERATURE_STEP = 0.1
        const val MAX_TEMPERATURE = TEMPERATURE_STEPS * TEMPERATURE_STEP
        val maxThreads: Int get() = java.lang.Runtime.getRuntime().availableProcessors().coerceAtLeast(1)

        private const val DEFAULT_LENGTH = 128
        private const val RUNTIME = "runtime"
        private const val THREADS = "threads"
        private const val MAX_NEW_TOKENS = "max_new_tokens"
        private const val TEMPERATURE = "temperature_tenths"
        private const val MODEL = "model"
        private const val BUNDLED = "wants_bundled"
        private const val PICTURE = "picture"
        private const val CHAT = "chat"
    }
}
