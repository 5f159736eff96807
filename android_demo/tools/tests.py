"""The JVM tests: JUnit, with Robolectric for the app, on the natives of this machine and the demo model."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

from android_demo.tools import maven, resources
from android_demo.tools.modules import Module, compile_tests
from android_demo.tools.natives import DESKTOP_LIBRARIES, build_desktop
from android_demo.tools.paths import BUILD, MODELS, ROOT, SCREENSHOTS
from android_demo.tools.run import empty, files_below, program


def run_tests(module: Module, only: str | None = None) -> bool:
    """Runs the module's tests, or those classes of it whose names contain `only`; whether all passed (true if there are none)."""
    resources.collect_assets()
    build_desktop()
    compile_tests(module)
    classes = [name for name in _test_classes(module) if only is None or only in name]
    if not classes:
        return True
    class_path = [module.test_classes, module.folder / "src" / "test" / "resources", *module.test_class_path()]
    if module.generated():
        class_path.insert(0, _robolectric_configuration())
    command = [program("java"), "-Xmx2g", *_properties(), "-cp", ":".join(map(str, class_path))]
    # ONNX Runtime's telemetry, on by default, looks for a folder of the user; in Robolectric's world it looks until the stack ends.
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run([*command, "org.junit.runner.JUnitCore", *classes], cwd=ROOT, env=environment).returncode == 0


def _test_classes(module: Module) -> list[str]:
    files = files_below(module.test_classes, "*Test.class")
    return [".".join(file.relative_to(module.test_classes).with_suffix("").parts) for file in files]


def _properties() -> list[str]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    android = maven.jar("android-all-instrumented")
    properties = {
        "java.io.tmpdir": empty(BUILD / "tmp"),
        "robolectric.offline": "true",
        "robolectric.dependency.dir": android.parent,
        "robolectric.graphicsMode": "NATIVE",
        "mote.repo.dir": ROOT,
        "mote.model.dir": MODELS,
        "mote.native.dir": DESKTOP_LIBRARIES,
        "mote.screenshot.dir": SCREENSHOTS,
    }
    return [f"-D{name}={value}" for name, value in properties.items()]


def _robolectric_configuration() -> Path:
    """A folder for the class path: the file by which a build tells Robolectric of the app, and the resources with the assets."""
    folder = BUILD / "robolectric"
    file = folder / "com" / "android" / "tools" / "test_config.properties"
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(shutil.copy(resources.linked(), folder / "app.apk"), "a") as archive:
        for asset in files_below(resources.ASSETS, "*"):
            archive.write(asset, f"assets/{asset.relative_to(resources.ASSETS)}")
    file.write_text(
        f"android_merged_manifest={resources.manifest()}\n"
        f"android_resource_apk={folder / 'app.apk'}\n"
        f"android_custom_package={resources.APPLICATION_ID}\n"
    )
    return folder
