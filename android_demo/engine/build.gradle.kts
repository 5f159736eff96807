plugins {
    alias(libs.plugins.android.library)
}

val abis = providers.gradleProperty("mote.abis").get().split(",")
val executorchRoot = providers.gradleProperty("mote.executorch.root").get()

android {
    namespace = "org.mote.engine"
    compileSdk = libs.versions.compile.sdk.get().toInt()
    ndkVersion = libs.versions.ndk.get()

    defaultConfig {
        minSdk = libs.versions.min.sdk.get().toInt()
        consumerProguardFiles("consumer-rules.pro")
        ndk {
            abiFilters += abis
        }
        externalNativeBuild {
            cmake {
                if (executorchRoot.isNotEmpty()) arguments += "-DMOTE_EXECUTORCH_ROOT=$executorchRoot"
            }
        }
    }

    externalNativeBuild {
        cmake {
            path = file("src/main/cpp/CMakeLists.txt")
            version = libs.versions.cmake.get()
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.toVersion(libs.versions.jvm.target.get())
        targetCompatibility = JavaVersion.toVersion(libs.versions.jvm.target.get())
    }

    // Tests run on the JVM with what `python -m android_demo.tools model` and `natives` have built (docs/android.md).
    testOptions.unitTests {
        isIncludeAndroidResources = true
        all { test ->
            val built = rootDir.parentFile.resolve("build/android")
            test.environment("ORT_DISABLE_TELEMETRY", "1")
            test.jvmArgs("--add-opens=java.base/java.io=ALL-UNNAMED")
            test.systemProperty("mote.repo.dir", rootDir.parent)
            test.systemProperty("mote.model.dir", built.resolve("models/digits").path)
            test.systemProperty("mote.native.dir", built.resolve("desktop/lib").path)
            test.systemProperty("mote.screenshot.dir", built.resolve("screenshots").path)
        }
    }
}

dependencies {
    api(libs.kotlin.stdlib)
    api(libs.onnxruntime.android)
    testImplementation(libs.onnxruntime.jvm)
    testImplementation(libs.junit)
    testImplementation(libs.robolectric)
}
