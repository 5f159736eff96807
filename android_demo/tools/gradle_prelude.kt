// What Gradle puts before a build script: its Kotlin extensions that ours use, and the accessors that it generates. Only types matter.
package org.mote.gradle

import com.android.build.api.dsl.ApplicationExtension
import com.android.build.api.dsl.LibraryExtension
import com.android.build.api.variant.ApplicationAndroidComponentsExtension
import java.io.File
import org.gradle.api.Project
import org.gradle.api.Task
import org.gradle.api.artifacts.dsl.DependencyHandler
import org.gradle.api.file.FileSystemLocation
import org.gradle.api.file.FileSystemLocationProperty
import org.gradle.api.provider.Property
import org.gradle.api.provider.Provider
import org.gradle.api.tasks.TaskContainer
import org.gradle.api.tasks.TaskProvider
import org.gradle.plugin.use.PluginDependenciesSpec
import org.gradle.plugin.use.PluginDependencySpec

fun <T : Any> Property<T>.assign(value: T?) = set(value)

fun <T : Any> Property<T>.assign(value: Provider<out T>) = set(value)

fun <T : FileSystemLocation> FileSystemLocationProperty<T>.assign(file: File?) = set(file)

infix fun PluginDependencySpec.apply(apply: Boolean): PluginDependencySpec = apply(apply)

fun Project.plugins(block: PluginDependenciesSpec.() -> Unit): Unit = TODO("$block")

fun Project.dependencies(block: DependencyHandler.() -> Unit) = dependencies.block()

fun DependencyHandler.api(notation: Any) = add("api", notation)

fun DependencyHandler.implementation(notation: Any) = add("implementation", notation)

fun DependencyHandler.testImplementation(notation: Any) = add("testImplementation", notation)

inline fun <reified T : Task> TaskContainer.register(name: String, noinline block: T.() -> Unit): TaskProvider<T> =
    register(name, T::class.java) { block() }

abstract class ApplicationProject : Project {
    fun android(block: ApplicationExtension.() -> Unit): Unit = TODO("$block")

    fun androidComponents(block: ApplicationAndroidComponentsExtension.() -> Unit): Unit = TODO("$block")
}

abstract class LibraryProject : Project {
    fun android(block: LibraryExtension.() -> Unit): Unit = TODO("$block")
}
