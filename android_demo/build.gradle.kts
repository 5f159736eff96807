plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.android.library) apply false
    // The Android plugin compiles Kotlin itself, with the newest compiler that it finds here.
    alias(libs.plugins.kotlin.android) apply false
}
