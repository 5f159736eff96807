"""The JVM tests: JUnit, with Robolectric for the app, on the natives of this machine and the demo model."""

import os
import shutil
import subprocess
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from android_demo.tools import maven, resources
from android_demo.tools.modules import Module, compile_tests
from android_demo.tools.natives import DESKTOP_LIBRARIES, build_desktop
from android_demo.tools.paths import BUILD, MODELS, ROOT, SCREENSHOTS
from android_demo.tools.run import Step, building, files_below, program

# ONNX Runtime's telemetry, on by default, looks for a folder of the user: under Robolectric until the stack ends.
ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1"}


def run_tests(module: Module, only: str | None = None) -> bool:
    """Runs the module's tests, or those classes of it whose names contain `only`; whether all passed (true if there are none)."""
    with tempfile.TemporaryDirectory() as folder:
        command = junit_command(module, Path(folder))
        classes = [name for name in _test_classes(module) if only is None or only in name]
        if not classes:
            return True
        environment = os.environ | ENVIRONMENT
        junit = subprocess.run(
            [*command, *classes], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(f"{module.name}:\n{junit.stdout}", flush=True)  # at once, as another module's tests may run beside these
        return junit.returncode == 0


def junit_command(module: Module, folder: Path, **properties: Path) -> list[str]:
    """Builds what tests need; the command that runs test classes whose names follow it, in `ENVIRONMENT`.

    `folder` takes what the command needs for itself, and `properties` are system properties `mote.NAME` beside those of all tests.
    """
    with building(), ThreadPoolExecutor(1) as pool:
        assets = pool.submit(resources.collect_assets)  # a first export of the demo model takes a minute of one core
        build_desktop()
        compile_tests(module)
        assets.result()
        class_path = _copy(_class_path(module), folder)
    own = [f"-Dmote.{name}={value}" for name, value in properties.items()]
    path = ":".join(map(str, class_path))
    # Robolectric closes file descriptors through the JDK's own fields.
    opened = "--add-opens=java.base/java.io=ALL-UNNAMED"
    return [program("java"), "-Xmx2g", opened, *_properties(folder), *own, "-cp", path, "org.junit.runner.JUnitCore"]


def _class_path(module: Module) -> list[Path]:
    of_robolectric = [_robolectric_configuration()] if module.generated() else []
    return [
        *of_robolectric,
        module.test_classes,
        module.folder / "src" / "test" / "resources",
        *module.test_class_path(),
    ]


def _copy(class_path: list[Path], folder: Path) -> list[Path]:
    """The class path with copies of what other processes may build anew while the tests run."""
    copied = []
    for index, path in enumerate(class_path):
        if path.is_dir() and BUILD in path.parents:
            path = Path(shutil.copytree(path, folder / str(index)))
        copied.append(path)
    return copied


def _test_classes(module: Module) -> list[str]:
    files = files_below(module.test_classes, "*Test.class")
    return [".".join(file.relative_to(module.test_classes).with_suffix("").parts) for file in files]


def _properties(temporary: Path) -> list[str]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    properties = {
        "java.io.tmpdir": temporary,
        "robolectric.offline": "true",
        "robolectric.dependency.dir": _androids(temporary),
        "robolectric.graphicsMode": "NATIVE",
        "mote.repo.dir": ROOT,
        "mote.model.dir": MODELS,
        "mote.native.dir": DESKTOP_LIBRARIES,
        "mote.screenshot.dir": SCREENSHOTS,
    }
    return [f"-D{name}={value}" for name, value in properties.items()]


def _androids(temporary: Path) -> Path:
    """A folder with the versions of Android that Robolectric may run."""
    folder = temporary / "androids"
    folder.mkdir()
    for library in ("android-all-instrumented", "oldest-android-all-instrumented"):
        path = maven.jar(library)
        (folder / path.name).symlink_to(path)
    return folder


def _robolectric_configuration() -> Path:
    """A folder for the class path: the file by which a build tells Robolectric of the app, and the resources with the assets."""
    folder = BUILD / "robolectric"
    package, file = folder / "app.apk", folder / "com" / "android" / "tools" / "test_config.properties"
    assets = files_below(resources.ASSETS, "*")
    step = Step(folder.with_suffix(".stamp"), [resources.linked(), *assets])
    if step.is_due() or not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            f"android_merged_manifest={resources.manifest()}\n"
            f"android_resource_apk={package}\n"
            f"android_custom_package={resources.APPLICATION_ID}\n"
        )
        with zipfile.ZipFile(shutil.copy(resources.linked(), package), "a") as archive:
            for asset in assets:
                archive.write(asset, f"assets/{asset.relative_to(resources.ASSETS)}")
        step.done()
    return folder
