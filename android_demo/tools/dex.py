"""Classes for Android's machine, by D8: those of the libraries, which seldom change, and ours, in files of their own."""

from collections.abc import Iterable
from pathlib import Path

from android_demo.tools import maven, onnxruntime, resources
from android_demo.tools.modules import APP, MODULES, compile_main
from android_demo.tools.paths import BUILD, VERSIONS
from android_demo.tools.run import Step, empty, files_below, java_home, note, run


def of_ours() -> list[Path]:
    """The .dex files of both modules and class R."""
    compile_main(APP)
    classes = [file for module in MODULES for file in files_below(module.classes, "*.class")]
    return _translate("ours", [*classes, resources.r_jar()], libraries())


def of_libraries() -> list[Path]:
    """The .dex files of those jars."""
    return _translate("libraries", libraries(), [])


def libraries() -> list[Path]:
    """The jars of what the app needs of others."""
    # Of ONNX Runtime the archive for Android has classes that the library for JVMs has not.
    jars = [path for path in maven.class_path(*APP.runtime_libraries()) if not path.name.startswith("onnxruntime-")]
    return [*jars, onnxruntime.archive() / "classes.jar"]


def _translate(name: str, inputs: list[Path], class_path: Iterable[Path]) -> list[Path]:
    output = BUILD / "dex" / name
    # Robolectric's Android leaves Java's own classes to the JDK.
    options: list[str | Path] = [
        "--lib",
        maven.jar("android-all"),
        "--lib",
        java_home(),
        "--release",
        "--min-api",
        VERSIONS["min-sdk"],
    ]
    for path in class_path:
        options += ["--classpath", path]
    step = Step(output.with_suffix(".stamp"), inputs, VERSIONS["r8"], options)
    if step.is_due():
        note(f"translating classes for Android ({name})")
        d8 = ("java", "-Xmx1g", "-XX:+UseSerialGC", "-cp", maven.jar("r8"), "com.android.tools.r8.D8")
        run(*d8, *options, "--output", empty(output), *inputs)
        step.done()
    return files_below(output, "*.dex")
