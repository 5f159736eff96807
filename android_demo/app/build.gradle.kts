dependencies {
    implementation(project(":engine"))
    testImplementation(libs.junit)
    testImplementation(libs.robolectric)
}
