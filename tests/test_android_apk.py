"""Gates on the APK: its signature, what it says of itself, how its libraries lie and what they import and export, its assets."""

import hashlib
import json
import re
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
from android import built, built_apk

from android_demo.tools import natives, onnxruntime
from android_demo.tools.modules import APP, ENGINE, compile_main
from android_demo.tools.paths import VERSIONS
from android_demo.tools.run import program

PAGE = 16384
MACHINES = {"arm64-v8a": "AArch64", "x86_64": "Advanced Micro Devices X86-64"}
OURS = [f"lib/{abi}/{name}" for abi in natives.ABIS for name in natives.LIBRARIES]
THEIRS = [f"lib/{abi}/{name}" for abi in natives.ABIS for name in onnxruntime.LIBRARIES]
PLUGIN_EXPORTS = {
    "RegisterCustomOps",
    "mote_trace_start",
    "mote_trace_stop",
    "mote_trace_read",
    "mote_trace_phase_name",
}
MODEL = "assets/models/digits"
# All but ONNX Runtime's own libraries, 71 MB of them.
MAX_BYTES_OF_OURS = 10_000_000


def output(*command: str | Path) -> str:
    words = [built(lambda: program(str(command[0]))), *command[1:]]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def apk() -> Path:
    return built_apk()


@pytest.fixture(scope="module")
def unpacked(apk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apk")
    zipfile.ZipFile(apk).extractall(folder)
    return folder


def test_it_is_signed_by_schemes_2_and_3(apk: Path) -> None:
    said = output("apksigner", "verify", "--verbose", "--min-sdk-version", VERSIONS["min-sdk"], apk)
    schemes = dict(re.findall(r"Verified using (v\d) scheme .*: (\w+)", said))
    assert (schemes["v1"], schemes["v2"], schemes["v3"]) == ("false", "true", "true")
    assert "Number of signers: 1\n" in said


def test_one_changed_byte_is_noticed(apk: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.apk"
    content = bytearray(apk.read_bytes())
    content[zipfile.ZipFile(apk).getinfo(OURS[0]).header_offset + PAGE] ^= 1
    changed.write_bytes(content)
    result = subprocess.run([program("apksigner"), "verify", changed], capture_output=True, text=True)
    assert result.returncode != 0
    assert "digest" in result.stdout + result.stderr


def test_what_it_says_of_itself(apk: Path) -> None:
    badging = output("aapt2", "dump", "badging", apk)
    assert f"package: name='org.mote.demo' versionCode='1' versionName='{VERSIONS['version-name']}'" in badging
    assert "sdkVersion:'26'\n" in badging
    assert "targetSdkVersion:'35'\n" in badging
    assert re.search(r"^application-label:'mote'$", badging, re.M)
    assert re.search(r"^launchable-activity: name='(org\.mote\.demo)?\.ChatActivity'", badging, re.M)
    assert re.search(r"^native-code: 'arm64-v8a' 'x86_64'$", badging, re.M)
    assert "'zh'" in re.findall(r"^locales: (.*)$", badging, re.M)[0]
    assert "uses-permission" not in badging, "offline, and nothing of the user's but what they pick"


def test_what_other_apps_may_start_is_the_chat_and_the_benchmark(apk: Path) -> None:
    tree = output("aapt2", "dump", "xmltree", apk, "--file", "AndroidManifest.xml")
    components = re.split(r"^ +E: (?:activity|provider|service|receiver) ", tree, flags=re.M)[1:]
    exported = {
        re.findall(r":name\S+=\"\.(\w+)\"", component)[0]: ":exported(0x01010010)=true" in component
        for component in components
    }
    assert {name for name, is_exported in exported.items() if is_exported} == {"ChatActivity", "BenchmarkActivity"}
    assert re.search(r":extractNativeLibs\S+=true", tree), "the plugin is opened by its path"
    assert "debuggable" not in tree


def test_every_class_that_the_manifest_names_is_there(apk: Path, unpacked: Path) -> None:
    tree = output("aapt2", "dump", "xmltree", apk, "--file", "AndroidManifest.xml")
    named = set(re.findall(r":name\S+=\"\.(\w+)\"", tree))
    assert {"DemoApplication", "ChatActivity", "BenchmarkActivity"} <= named
    classes = set()
    for dex in sorted(unpacked.glob("*.dex")):
        classes |= set(re.findall(r"Class descriptor  : 'L([^;]+);'", output("dexdump", dex)))
    assert {f"org/mote/demo/{name}" for name in named} <= classes
    assert {"org/mote/engine/MoteSession", "ai/onnxruntime/OrtSession", "kotlin/Unit"} <= classes


def test_libraries_can_be_mapped_where_they_lie(apk: Path) -> None:
    with zipfile.ZipFile(apk) as archive, apk.open("rb") as file:
        libraries = [entry for entry in archive.infolist() if entry.filename.endswith(".so")]
        assert sorted(entry.filename for entry in libraries) == sorted(OURS + THEIRS)
        for entry, alignment in [*((library, PAGE) for library in libraries), (archive.getinfo("resources.arsc"), 4)]:
            assert entry.compress_type == zipfile.ZIP_STORED, entry.filename
            file.seek(entry.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            assert (entry.header_offset + 30 + name_length + extra_length) % alignment == 0, entry.filename


def test_debians_zipalign_agrees(apk: Path) -> None:
    assert "Verification successful" in output("zipalign", "-c", "-p", "-v", "4", apk)


@pytest.mark.parametrize("library", OURS + THEIRS)
def test_segments_fit_pages_of_16_kb(unpacked: Path, library: str) -> None:
    headers = output("readelf", "-h", "-l", "-d", "-W", unpacked / library)
    assert f"Machine:                           {MACHINES[library.split('/')[1]]}\n" in headers
    alignments = [int(line.split()[-1], 16) for line in headers.splitlines() if line.startswith("  LOAD ")]
    assert len(alignments) >= 2
    assert all(alignment % PAGE == 0 for alignment in alignments)
    assert "TEXTREL" not in headers
    assert re.search(r"GNU_STACK .* RW ", headers), "no stack that can be executed"


@pytest.mark.parametrize("library", OURS)
def test_ours_import_only_what_android_has(unpacked: Path, library: str) -> None:
    allowed = natives.allowed_imports()
    dynamic = output("readelf", "-d", "-W", unpacked / library)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert needed <= set(allowed)
    imported = dynamic_symbols(unpacked / library)[0]
    assert imported
    assert imported <= set().union(*(allowed[name] for name in needed))
    assert "BIND_NOW" in dynamic
    assert "GNU_RELRO" in output("readelf", "-l", "-W", unpacked / library)
    assert "PAC_PLT" not in dynamic, "no loader signs the addresses that it would authenticate"


def dynamic_symbols(library: Path) -> tuple[set[str], set[str]]:
    """Names that a library imports, and those that it exports."""
    imported, exported = set(), set()
    for line in output("readelf", "--dyn-syms", "-W", library).splitlines():
        if found := re.search(r"(?:GLOBAL|WEAK)\s+DEFAULT\s+(?:\[.*\]\s+)?(\S+)\s+([^\s@]+)", line):
            (imported if found[1] == "UND" else exported).add(found[2])
    return imported, exported


@pytest.mark.parametrize("abi", natives.ABIS)
def test_what_ours_import_real_libraries_import_too(unpacked: Path, abi: str) -> None:
    """ONNX Runtime's library was built by the NDK and runs on phones. madvise alone it has no use for."""
    of_theirs = dynamic_symbols(unpacked / f"lib/{abi}/libonnxruntime.so")[0]
    of_ours = set().union(*(dynamic_symbols(unpacked / f"lib/{abi}/{name}")[0] for name in natives.LIBRARIES))
    assert of_ours - of_theirs <= {"madvise"}


@pytest.mark.parametrize("abi", natives.ABIS)
def test_entry_points_are_all_that_is_exported(unpacked: Path, abi: str) -> None:
    built(lambda: compile_main(ENGINE))
    assert dynamic_symbols(unpacked / f"lib/{abi}/libmote_ort.so")[1] == PLUGIN_EXPORTS
    methods = output("javap", "-p", "-cp", ENGINE.classes, "org.mote.engine.MoteJni")
    declared = {f"Java_org_mote_engine_MoteJni_{name}" for name in re.findall(r" native .*?(\w+)\(", methods)}
    assert len(declared) > 3
    assert dynamic_symbols(unpacked / f"lib/{abi}/libmote_jni.so")[1] == declared


def test_code_for_arm_is_protected_and_has_all_kernels(unpacked: Path) -> None:
    for name in natives.LIBRARIES:
        notes = output("readelf", "-n", "-W", unpacked / "lib/arm64-v8a" / name)
        assert re.search(r"AArch64 feature: BTI, PAC", notes), name
    code = output("aarch64-linux-gnu-objdump", "-d", unpacked / "lib/arm64-v8a/libmote_ort.so")
    assert {"sdot", "smmla"} <= set(re.findall(r"\t(sdot|smmla)\t", code))


def test_code_for_x86_has_all_kernels(unpacked: Path) -> None:
    code = output("objdump", "-d", unpacked / "lib/x86_64/libmote_ort.so")
    # Of AVX2, AVX-VNNI, AVX-512 VNNI and AVX-512 VBMI.
    for instruction in (r"vpmaddubsw .*%ymm", r"\{vex\} vpdpbusd", r"vpdpbusd .*%zmm", r"vpermi2b"):
        assert re.search(rf"\t{instruction}", code), instruction


def test_the_model_in_the_assets_is_whole(unpacked: Path) -> None:
    files = json.loads((unpacked / MODEL / "mote.json").read_text())["files"]
    libraries = {name for name in files if name.endswith(".so")}
    there = {path.name for path in (unpacked / MODEL).iterdir()}
    assert there == set(files) - libraries | {"mote.json"}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json"} <= there
    for name in there - {"mote.json"}:
        content = (unpacked / MODEL / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (files[name]["bytes"], files[name]["sha256"])


def test_no_code_and_no_path_of_this_machine_is_in_it(unpacked: Path) -> None:
    assert not list((unpacked / "assets").rglob("*.so"))
    for library in OURS:
        assert str(APP.folder.parents[1]).encode() not in (unpacked / library).read_bytes()


def test_size(apk: Path) -> None:
    with zipfile.ZipFile(apk) as archive:
        theirs = sum(archive.getinfo(name).compress_size for name in THEIRS)
    assert apk.stat().st_size - theirs < MAX_BYTES_OF_OURS
