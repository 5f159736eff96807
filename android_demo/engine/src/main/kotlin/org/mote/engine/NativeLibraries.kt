package org.mote.engine

import dalvik.system.BaseDexClassLoader
import java.io.File

/**
 * Where the native libraries are: on Android `NativeLibraries(File(context.applicationInfo.nativeLibraryDir))`.
 *
 * An app whose libraries stay inside its APK (the default of the Android Gradle plugin) has no file in that folder;
 * then the app's class loader names the place inside the APK, which the system's loader takes as a path.
 */
class NativeLibraries(val folder: File) {
    /** Whether all libraries that an export for [runtime] needs are there. */
    fun has(runtime: Runtime): Boolean = required(runtime).all { find(it) != null }

    private fun required(runtime: Runtime) = when (runtime) {
        Runtime.ONNX_RUNTIME -> listOf(SUPPORT, runtime.plugin)
        Runtime.EXECUTORCH -> listOf(SUPPORT, EXECUTORCH, runtime.plugin)
    }

    /** The path of a library such as `mote_ort`. Throws [MoteException] where it is missing. */
    internal fun path(name: String): String = find(name) ?: throw MoteException(
        "${System.mapLibraryName(name)} is not in $folder; add it to the app's libraries for this device's processor",
    )

    /** Loads a library with methods for Kotlin; again does nothing. Throws [MoteException]. */
    internal fun load(name: String) {
        val path = path(name)
        try {
            System.load(path)
        } catch (error: UnsatisfiedLinkError) {
            throw MoteException("$path cannot be loaded: ${reason(error)}", error)
        }
    }

    private fun find(name: String): String? {
        val file = File(folder, System.mapLibraryName(name))
        if (file.isFile) return file.absolutePath
        return (javaClass.classLoader as? BaseDexClassLoader)?.findLibrary(name)
    }

    internal companion object {
        const val SUPPORT = "mote_jni"
        const val EXECUTORCH = "mote_executorch_jni"
    }
}

private const val MAX_REASON = 400

/** The message of a library on one line, for use inside a sentence. */
internal fun reason(error: Throwable): String {
    val text = (error.message ?: error.javaClass.simpleName).replace(Regex("[\\s\\p{Cntrl}]+"), " ").trim()
    return if (text.length <= MAX_REASON) text else text.take(MAX_REASON) + "..."
}
