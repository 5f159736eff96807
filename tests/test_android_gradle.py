"""The Gradle project, as far as it can be checked without Gradle: its scripts' types, and that they say what the tools do."""

import re
import tomllib

import pytest
from android import built
from android_demo.tools import gradle, natives
from android_demo.tools.paths import PROJECT, VERSIONS
from android_demo.tools.resources import APPLICATION_ID
from android_demo.tools.run import ToolError

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


@pytest.mark.slow
def test_scripts_fit_the_interfaces_of_gradle_and_of_the_android_plugin() -> None:
    built(gradle.check_scripts)


@pytest.mark.slow
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
