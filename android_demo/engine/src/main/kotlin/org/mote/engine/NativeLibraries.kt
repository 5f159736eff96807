package org.mote.engine

import java.io.File

/**
 * Where the native libraries are: on Android `NativeLibraries(File(context.applicationInfo.nativeLibraryDir))`.
 *
 * An app whose libraries stay inside its APK (the default of the Android Gradle plugin) has no file in that folder;
 * they are then asked for from the app's class loader, which names the place inside the APK.
 */
class NativeLibraries(val folder: File) {
    /** Whether all libraries that an export for [runtime] needs are there. */
    fun has(runtime: Runtime): Boolean = TODO()
}
