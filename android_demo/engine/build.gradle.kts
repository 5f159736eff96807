dependencies {
    api(libs.kotlin.stdlib)
    api(libs.onnxruntime.android)
    testImplementation(libs.onnxruntime.jvm)
    testImplementation(libs.junit)
    testImplementation(libs.robolectric)
}
