import javax.inject.Inject

plugins {
    alias(libs.plugins.android.application)
}

val abis = providers.gradleProperty("mote.abis").get().split(",")

android {
    namespace = "org.mote.demo"
    compileSdk = libs.versions.compile.sdk.get().toInt()

    defaultConfig {
        applicationId = "org.mote.demo"
        minSdk = libs.versions.min.sdk.get().toInt()
        targetSdk = libs.versions.target.sdk.get().toInt()
        versionCode = libs.versions.version.code.get().toInt()
        versionName = libs.versions.version.name.get()
        ndk {
            abiFilters += abis
        }
    }

    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"))
        }
    }

    packaging {
        // Libraries are unpacked when the app is installed: the plugin is opened by its path.
        jniLibs.useLegacyPackaging = true
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

/** The demo model, without its copy of the plugin, which is for other clients (code belongs into lib/), and pictures to ask about. */
abstract class BundleDemo : DefaultTask() {
    @get:InputDirectory
    abstract val model: DirectoryProperty

    @get:InputDirectory
    abstract val samples: DirectoryProperty

    @get:OutputDirectory
    abstract val assets: DirectoryProperty

    @get:Inject
    abstract val files: FileSystemOperations

    @TaskAction
    fun bundle() {
        files.sync {
            into(assets)
            from(model) {
                into("models/digits")
                exclude("*.so")
            }
            from(samples) {
                into("samples")
                include("*.png")
            }
        }
    }
}

val repository: File = rootDir.parentFile

// Needs the project's Python environment: run `make build` in the repository once.
val exportDemoModel = tasks.register<Exec>("exportDemoModel") {
    workingDir = repository
    commandLine(repository.resolve(".venv/bin/python"), "-m", "android_demo.tools", "model")
}

val bundleDemo = tasks.register<BundleDemo>("bundleDemo") {
    dependsOn(exportDemoModel)
    model = repository.resolve("build/android/models/digits/onnx")
    samples = repository.resolve("examples/digits_vqa/images")
}

androidComponents {
    onVariants { variant ->
        variant.sources.assets?.addGeneratedSourceDirectory(bundleDemo, BundleDemo::assets)
    }
}

dependencies {
    implementation(project(":engine"))
    testImplementation(libs.onnxruntime.jvm)
    testImplementation(libs.junit)
    testImplementation(libs.robolectric)
}
