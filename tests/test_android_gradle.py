"""The Gradle project, as far as it can be checked without Gradle: its scripts' types, and that they say what the tools do."""

import re
import tomllib
from pathlib import Path

import pytest
from android import built
from android_classes import Dex

from android_demo.tools import dex, gradle, maven, natives, resources
from android_demo.tools.modules import ENGINE, MODULES
from android_demo.tools.paths import PROJECT, VERSIONS
from android_demo.tools.resources import APPLICATION_ID
from android_demo.tools.run import ToolError, files_below, java_home, run

MISTAKES = [
    # script, what is right, what is wrong, what the compiler says of it
    ("settings.gradle.kts", "FAIL_ON_PROJECT_REPOS", "FAIL_ALWAYS", "unresolved reference 'FAIL_ALWAYS'"),
    ("build.gradle.kts", "libs.plugins.android.library", "libs.plugins.android.test", "unresolved reference 'test'"),
    ("engine/build.gradle.kts", "libs.kotlin.stdlib", "libs.kotlin.reflect", "unresolved reference 'reflect'"),
    ("engine/build.gradle.kts", "abiFilters += abis", "abiFilter += abis", "unresolved reference 'abiFilter'"),
    ("engine/build.gradle.kts", 'file("src/main/cpp/CMakeLists.txt")', '"CMakeLists.txt"', "assignment type mismatch"),
    (
        "app/build.gradle.kts",
        "targetSdk = libs.versions.target.sdk.get().toInt()",
        'targetSdk = "35"',
        "assignment type mismatch",
    ),
    (
        "app/build.gradle.kts",
        "jniLibs.useLegacyPackaging",
        "jniLibs.legacyPackaging",
        "unresolved reference 'legacyPackaging'",
    ),
    ("app/build.gradle.kts", "sources.assets?.addGenerated", "sources.assets.addGenerated", "only safe (?.)"),
]


@pytest.mark.long
def test_scripts_fit_the_interfaces_of_gradle_and_of_the_android_plugin() -> None:
    built(gradle.check_scripts)


@pytest.mark.long
def test_the_compiler_notices_mistakes() -> None:
    texts = {name: (PROJECT / name).read_text() for name in gradle.SCRIPTS}
    for script, right, wrong, _ in MISTAKES:
        assert texts[script].count(right) == 1, right
        texts[script] = texts[script].replace(right, wrong)
    with pytest.raises(ToolError) as error:
        built(lambda: gradle.check_scripts(texts))
    complaints = re.findall(r"error: (.*)", str(error.value))
    for *_, complaint in MISTAKES:
        assert any(complaint in found for found in complaints), (complaint, complaints)


def shrink(folder: Path) -> tuple[Path, int]:
    """What Gradle's release build does: R8 with the engine's rules and with those that aapt2 makes of manifest and layouts.

    The .dex file, and how many classes of ours it was made of.
    """
    dex.of_ours()
    rules = folder / "aapt2.pro"
    link = ("aapt2", "link", "--manifest", resources.manifest(), "-I", resources.FRAMEWORK, "--proguard", rules)
    run(*link, "-o", folder / "resources.apk", resources.FOLDER / "compiled.zip")
    classes = [file for module in MODULES for file in files_below(module.classes, "*.class")]
    run(
        *("java", "-Xmx1g", "-XX:+UseSerialGC", "-cp", maven.jar("r8"), "com.android.tools.r8.R8", "--release"),
        *("--lib", maven.jar("android-all"), "--lib", java_home(), "--min-api", VERSIONS["min-sdk"]),
        *("--pg-conf", PROJECT / "engine" / "consumer-rules.pro", "--pg-conf", rules, "--output", folder),
        *classes,
        *(resources.r_jar(), *dex.libraries()),
    )
    return folder / "classes.dex", len(classes)


@pytest.mark.long
def test_a_shrunk_app_keeps_what_native_code_calls(tmp_path: Path) -> None:
    file, num_classes = built(lambda: shrink(tmp_path))
    kept = set(re.findall(r"Class descriptor  : 'L([^;]+);'", run("dexdump", file)))
    assert {"org/mote/demo/ChatActivity", "org/mote/demo/BenchmarkActivity", "ai/onnxruntime/OrtSession"} <= kept
    assert len([name for name in kept if name.startswith("org/mote/")]) < num_classes / 2, "it was shrunk"
    sources = "".join(file.read_text() for file in files_below(ENGINE.folder / "src" / "main", "*.kt"))
    native = set(re.findall(r"external fun (\w+)\(", sources))
    assert {"allocate", "open"} <= native
    assert native <= {member.name for member in Dex(file).references() if member.owner.startswith("org/mote/engine/")}


def test_they_say_what_the_tools_do() -> None:
    app, engine = ((PROJECT / name / "build.gradle.kts").read_text() for name in ("app", "engine"))
    assert f'applicationId = "{APPLICATION_ID}"' in app
    assert "useLegacyPackaging = true" in app
    assert (PROJECT / "engine" / "src" / "main" / "cpp" / "CMakeLists.txt").is_file()
    assert f"mote.abis={','.join(natives.ABIS)}\n" in (PROJECT / "gradle.properties").read_text()
    assert 'path = file("src/main/cpp/CMakeLists.txt")' in engine
    assert (VERSIONS["min-sdk"], VERSIONS["target-sdk"]) == ("26", "35")
    assert VERSIONS["ndk"].startswith("28.")


def test_the_catalog_has_no_version_that_nothing_uses() -> None:
    catalog = tomllib.loads((PROJECT / "gradle" / "libs.versions.toml").read_text())
    entries = [*catalog["libraries"].values(), *catalog["plugins"].values()]
    used = {entry["version"]["ref"] for entry in entries}
    scripts = "".join((PROJECT / name).read_text() for name in gradle.SCRIPTS)
    used |= {name for name in catalog["versions"] if f"libs.versions.{name.replace('-', '.')}.get()" in scripts}
    assert used == set(catalog["versions"])
