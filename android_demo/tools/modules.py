"""The two modules, engine and app, compiled to classes: main and test sources, each only when something of it changed."""

import re
from dataclasses import dataclass
from pathlib import Path

from android_demo.tools import maven, resources
from android_demo.tools.paths import BUILD, PROJECT, VERSIONS
from android_demo.tools.run import Step, empty, files_below, note, run

COMPILER = "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"
OPTIONS = (
    *("-no-stdlib", "-no-reflect", "-Werror", "-jvm-target", VERSIONS["jvm-target"]),
    # The SDK's android.jar does not have these annotations of the framework's own sources.
    "-Xnullability-annotations=@android.annotation:ignore",
)
# The archive for Android has the same classes as the library for JVMs, and Maven's client cannot always have it.
SAME_CLASSES = {"onnxruntime-android": "onnxruntime-jvm"}


@dataclass(frozen=True)
class Module:
    """A module of the Gradle project; `needs` are modules whose classes it uses."""

    name: str
    needs: tuple["Module", ...] = ()

    @property
    def folder(self) -> Path:
        return PROJECT / self.name

    @property
    def classes(self) -> Path:
        return BUILD / self.name / "classes"

    @property
    def test_classes(self) -> Path:
        return BUILD / self.name / "test-classes"

    def libraries(self, *configurations: str) -> list[str]:
        """Names in the catalog of what the module's build.gradle.kts declares, so that it is said in one place."""
        script = (self.folder / "build.gradle.kts").read_text()
        found = re.findall(rf"^\s*(?:{'|'.join(configurations)})\(libs\.([\w.]+)\)", script, re.MULTILINE)
        return [SAME_CLASSES.get(name, name) for name in (name.replace(".", "-") for name in found)]

    def runtime_libraries(self) -> list[str]:
        """What the app must contain for this module."""
        own = self.libraries("api", "implementation")
        return list(dict.fromkeys([library for module in self.needs for library in module.runtime_libraries()] + own))

    def main_class_path(self) -> list[Path]:
        """What main sources are compiled with, Android last."""
        modules = [path for module in self.needs for path in (module.classes, *module.generated())]
        return [*modules, *self.generated(), *maven.class_path(*self.runtime_libraries()), maven.jar("android-all")]

    def test_class_path(self) -> list[Path]:
        """What tests are compiled and run with, Android last."""
        libraries = dict.fromkeys([*self.runtime_libraries(), *self.libraries("testImplementation")])
        modules = [path for module in self.needs for path in (module.classes, *module.generated())]
        own = [self.classes, *self.generated()]
        return [*own, *modules, *maven.class_path(*libraries), maven.jar("android-all")]

    def generated(self) -> list[Path]:
        """The jar with class R, if the module has resources."""
        return [resources.r_jar()] if (self.folder / "src" / "main" / "res").is_dir() else []


ENGINE = Module("engine")
APP = Module("app", needs=(ENGINE,))
MODULES = (ENGINE, APP)


def compile_main(module: Module) -> None:
    """Compiles the module's main sources, after those of the modules that it needs."""
    for needed in module.needs:
        compile_main(needed)
    if module.generated():
        resources.link()
    _compile(module.name, module.folder / "src" / "main" / "kotlin", module.classes, module.main_class_path())


def compile_tests(module: Module) -> None:
    """Compiles the module's tests, which see what is internal in its main sources."""
    compile_main(module)
    friends = f"-Xfriend-paths={module.classes}"
    sources = module.folder / "src" / "test" / "kotlin"
    _compile(f"{module.name} (tests)", sources, module.test_classes, module.test_class_path(), friends)


def _compile(what: str, sources: Path, output: Path, class_path: list[Path], *options: str) -> None:
    files = files_below(sources, "*.kt")
    inputs = [*files, *(file for path in class_path for file in _contents(path))]
    step = Step(output.with_suffix(".stamp"), inputs, OPTIONS, options, VERSIONS["kotlin"], class_path)
    if not step.is_due():
        return
    empty(output)
    if files:
        note(f"compiling {what}")
        compiler = maven.class_path("kotlin-compiler")
        arguments: list[str | Path] = [
            "-d",
            output,
            "-cp",
            _join(class_path),
            "-module-name",
            output.parent.name,
            *OPTIONS,
            *options,
        ]
        java = ("java", "-Xmx2g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        run(*java, "-cp", _join(compiler), COMPILER, *arguments, *files)
    step.done()


def _contents(path: Path) -> list[Path]:
    """What of a class path is compared: classes of ours; jars of versions are known by their path."""
    return files_below(path, "*.class") if path.is_dir() else [path] if BUILD in path.parents else []


def _join(class_path: list[Path]) -> str:
    return ":".join(map(str, class_path))
