"""The app's resources: aapt2, class R, and what Robolectric reads."""

import zipfile
from pathlib import Path
from xml.etree import ElementTree

from android_demo.tools.models import export_demo_model
from android_demo.tools.paths import BUILD, MODELS, PROJECT, ROOT, VERSIONS
from android_demo.tools.run import MissingPackageError, Step, ToolError, empty, files_below, note, run

APPLICATION_ID = "org.mote.demo"
MAIN = PROJECT / "app" / "src" / "main"
SAMPLES = ROOT / "examples" / "digits_vqa" / "images"
FOLDER = BUILD / "resources"
ASSETS = BUILD / "assets"
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")  # Debian's: the attributes of API 29
ANDROID = "http://schemas.android.com/apk/res/android"


def r_jar() -> Path:
    return FOLDER / "R.jar"


def linked() -> Path:
    """Manifest and resources as aapt2 links them: an APK without code and assets."""
    return FOLDER / "resources.apk"


def manifest() -> Path:
    """The manifest with what Gradle would add from its build scripts."""
    return FOLDER / "AndroidManifest.xml"


def link() -> None:
    """Makes `linked()`, `manifest()` and `r_jar()` from the app's manifest and res/, where anything changed."""
    sources = [MAIN / "AndroidManifest.xml", *files_below(MAIN / "res", "*"), Path(__file__)]
    step = Step(FOLDER / "stamp", sources, VERSIONS)
    if not step.is_due():
        return
    note("linking resources")
    if not FRAMEWORK.is_file():
        raise MissingPackageError(f"{FRAMEWORK} is missing: install the package android-framework-res (Debian, Ubuntu)")
    empty(FOLDER)
    _write_manifest()
    compiled, java = FOLDER / "compiled.zip", FOLDER / "java"
    run("aapt2", "compile", "--dir", MAIN / "res", "-o", compiled)
    run(
        *("aapt2", "link", "-o", linked(), "-I", FRAMEWORK, "--manifest", manifest(), "--java", java),
        *("--min-sdk-version", VERSIONS["min-sdk"], "--target-sdk-version", VERSIONS["target-sdk"]),
        *("--version-code", VERSIONS["version-code"], "--version-name", VERSIONS["version-name"], compiled),
    )
    _compile_r(java)
    step.done()


def collect_assets() -> None:
    """Makes ASSETS: the app's own, sample pictures, and the demo model without its plugin, since code belongs into lib/."""
    export_demo_model()
    own, model = MAIN / "assets", MODELS / "onnx"
    copies = {ASSETS / "models" / "digits" / file.relative_to(model): file for file in files_below(model, "*")}
    copies |= {ASSETS / "samples" / file.name: file for file in files_below(SAMPLES, "*.png")}
    copies |= {ASSETS / file.relative_to(own): file for file in files_below(own, "*")}
    step = Step(BUILD / "assets.stamp", copies.values(), Path(__file__).read_text())
    if not step.is_due():
        return
    empty(ASSETS)
    for copy, file in copies.items():
        if file.suffix != ".so":
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    step.done()


def _write_manifest() -> None:
    """Gradle's build scripts say the package and that libraries are unpacked; aapt2 wants both in the manifest."""
    ElementTree.register_namespace("android", ANDROID)
    tree = ElementTree.parse(MAIN / "AndroidManifest.xml")
    root, application = tree.getroot(), tree.find("application")
    if application is None or "package" in root.attrib:
        raise ToolError(
            f"{MAIN / 'AndroidManifest.xml'} must have an application and no package, which Gradle's build scripts say"
        )
    root.set("package", APPLICATION_ID)
    # The plugin is opened by its path, as an ordinary file beside the app.
    application.set(f"{{{ANDROID}}}extractNativeLibs", "true")
    tree.write(manifest(), encoding="utf-8", xml_declaration=True)


def _compile_r(java: Path) -> None:
    classes = empty(FOLDER / "r")
    run("javac", "--release", VERSIONS["jvm-target"], "-d", classes, *files_below(java, "*.java"))
    with zipfile.ZipFile(r_jar(), "w") as jar:
        for file in files_below(classes, "*.class"):
            # Without the time of day, so that the same resources give the same jar.
            jar.writestr(zipfile.ZipInfo(str(file.relative_to(classes))), file.read_bytes())
