"""What is built and packaged: the libraries stand alone, the wheel holds what it should, our ABI header is right."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from android_demo.tools import onnxruntime
from android_demo.tools.run import ToolError
from mote_runtime import get_library_path

ROOT = Path(__file__).parents[1]
ABI_FOLDER = ROOT / "runtime" / "onnxruntime"
TRACE_FUNCTIONS = {"mote_trace_start", "mote_trace_stop", "mote_trace_read", "mote_trace_phase_name"}


def readelf(option: str, library: Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is missing: install binutils")
    return subprocess.run(["readelf", option, "-W", library], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("runtime", "needed", "exported"),
    [
        ("onnxruntime", set(), {"RegisterCustomOps", *TRACE_FUNCTIONS}),
        ("executorch", {"libexecutorch.so", "libexecutorch_threadpool.so"}, TRACE_FUNCTIONS),
    ],
)
def test_a_library_stands_alone(runtime: str, needed: set[str], exported: set[str]) -> None:
    library = get_library_path(runtime)  # type: ignore[arg-type]
    dynamic = readelf("-d", library)
    libraries = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    c_libraries = {name for name in libraries if re.match(r"(libc|libm|libpthread|libdl|ld-linux.*)\.so", name)}
    assert libraries - c_libraries == needed, "the C++ library is linked in"
    assert set(re.findall(r"RUNPATH.*\[(.*)\]", dynamic)) <= {"$ORIGIN/../../executorch/lib"}
    assert "NODELETE" in dynamic
    symbols = re.findall(r"(?:GLOBAL|WEAK)\s+DEFAULT\s+(?!UND)\S+\s+(\S+)", readelf("--dyn-syms", library))
    assert set(symbols) == exported
    alignments = {int(line.split()[-1], 16) for line in readelf("-l", library).splitlines() if "LOAD" in line}
    assert alignments == {16384}
    assert str(ROOT).encode() not in library.read_bytes(), "no path of the machine that built it"


def headers() -> Path:
    """A folder with the official header: from the environment, or from the archive for Android, kept outside of the repository."""
    if folder := os.environ.get("ONNXRUNTIME_INCLUDE_DIR"):
        return Path(folder)
    try:
        return onnxruntime.archive() / "headers"
    except ToolError as error:
        pytest.skip(f"ONNXRUNTIME_INCLUDE_DIR is not set, and there is no official header to compare with: {error}")


def compile_abi_check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        os.environ.get("CXX", "c++"),
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Wno-ignored-attributes",
    ]
    return subprocess.run(
        [*command, "-isystem", headers(), folder / "ort_abi_check.cpp"], capture_output=True, text=True
    )


@pytest.mark.slow
def test_our_declaration_of_the_abi_agrees_with_the_official_header() -> None:
    result = compile_abi_check(ABI_FOLDER)
    assert result.returncode == 0, result.stderr
    assert not result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("Slot gap_254[14];", "Slot gap_254[15];", "offset of KernelContext_ParallelFor"),
        ("size_t num_batch, void* arg", "int num_batch, void* arg", "signature of KernelContext_ParallelFor"),
        ("int (*GetInputType)(const CustomOp* op, size_t index) = nullptr;", "", "GetInputType"),
        ("Slot gap_233[4];", "Slot gap_233[3];", "offset of HasSessionConfigEntry"),
        ("size_t index, char* out", "size_t index, const char* out", "signature of KernelInfo_GetInputName"),
        ("kUint8 = 2", "kUint8 = 3", "kUint8"),
        ("kBfloat16 = 16", "kBfloat16 = 10", "kBfloat16"),
        ("kOptional = 1", "kOptional = 2", "kOptional"),
    ],
)
def test_the_comparison_notices_a_mistake(tmp_path: Path, right: str, wrong: str, complaint: str) -> None:
    text = (ABI_FOLDER / "ort_abi.h").read_text()
    assert text.count(right) == 1
    (tmp_path / "ort_abi.h").write_text(text.replace(right, wrong))
    shutil.copy(ABI_FOLDER / "ort_abi_check.cpp", tmp_path)
    result = compile_abi_check(tmp_path)
    assert result.returncode != 0
    assert complaint in result.stderr


def tool(name: str) -> str:
    """A command of this environment, which need not be activated."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is missing: run the tests with `make test`")
    return found


def test_without_executorch_only_the_other_plugin_is_configured(tmp_path: Path) -> None:
    command = [tool("cmake"), "-S", ROOT, "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    result = subprocess.run([*command, f"-DMOTE_EXECUTORCH_ROOT={tmp_path}/none"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (
        "executorch 1.5 was not found in this Python environment: building without libmote_executorch.so"
        in result.stdout
    )
    targets = subprocess.run(
        [tool("ninja"), "-C", tmp_path, "-t", "targets", "all"], capture_output=True, text=True
    ).stdout
    assert "libmote_ort.so" in targets
    assert "libmote_executorch.so" not in targets


def make_venv(folder: Path, pyproject: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`make venv` in a folder of its own."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").write_text(pyproject)
    command = [tool("make"), "-C", folder, "venv", *(f"{name}={value}" for name, value in variables.items())]
    return subprocess.run(command, capture_output=True, text=True)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_make_says_that_python_is_too_old(tmp_path: Path) -> None:
    pretend = 'import sys; sys.version_info = (3, 10, 12); sys.version = "3.10.12 (main)"; exec(sys.argv[1])'
    old = script(tmp_path / "old-python", f"shift; exec '{sys.executable}' -c '{pretend}' \"$1\"")
    result = make_venv(tmp_path, "", PYTHON=str(old))
    assert result.returncode != 0
    assert re.search(r"^mote needs Python 3\.11 or newer, and \S+ is 3\.10\.12: .*make PYTHON=", result.stderr, re.M)
    assert not (tmp_path / ".venv").exists()


def test_make_stops_when_the_build_requirements_cannot_be_read(tmp_path: Path) -> None:
    script(tmp_path / ".venv" / "bin" / "python", f"exec '{sys.executable}' \"$@\"")
    result = make_venv(tmp_path, "[")
    assert result.returncode != 0
    assert "TOMLDecodeError" in result.stderr
    assert "pip install" not in result.stdout
    assert not (tmp_path / ".venv" / ".stamp").exists()


def test_executorch_is_only_asked_for_where_it_has_wheels() -> None:
    """Elsewhere `pip install .` would fail instead of building the plugin for ONNX Runtime."""
    build_system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    executorch = next(r for r in map(Requirement, build_system["requires"]) if r.name == "executorch")
    assert executorch.marker is not None
    for system, machine, version, has_wheel in [
        ("linux", "x86_64", "3.11", True),
        ("linux", "aarch64", "3.14", True),
        ("linux", "x86_64", "3.15", False),
        ("linux", "riscv64", "3.12", False),
        ("linux", "armv7l", "3.12", False),
        ("darwin", "x86_64", "3.12", False),
    ]:
        environment = {"sys_platform": system, "platform_machine": machine, "python_version": version}
        assert executorch.marker.evaluate(environment) is has_wheel, environment


def test_the_source_archive_holds_what_the_build_and_its_tests_need(tmp_path: Path) -> None:
    code = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    with tarfile.open(tmp_path / result.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "runtime/core/benchmarks/CMakeLists.txt", "runtime/core/tests/CMakeLists.txt"} <= names
    assert not {name for name in names if name.startswith(("examples/", "benchmarks/", ".ci/"))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Not in the source tree's build folder, which an editable install or another run may be using.
    build = tmp_path_factory.mktemp("build")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"),
            *(f"--config-settings=build-dir={build}", "-w", folder, ROOT),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (build / "build.ninja").is_file()
    return next(folder.glob("*.whl"))


@pytest.mark.long
def test_the_wheel_holds_the_packages_and_the_plugins(wheel: Path) -> None:
    assert re.fullmatch(r"mote-\d+\.\d+\.\d+-py3-none-linux_\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert folders == {"mote_export", "mote_runtime", "optimum"}
    assert [name for name in names if name.startswith("optimum/")] == ["optimum/commands/register/register_mote.py"]
    assert {name for name in names if not name.endswith(".py") and ".dist-info" not in name} == {
        "mote_export/py.typed",
        "mote_runtime/py.typed",
        "mote_runtime/bin/libmote_runner_executorch.so",
        "mote_runtime/bin/mote-runner",
        "mote_runtime/profile/report/style.css",
        "mote_runtime/lib/libmote_ort.so",
        "mote_runtime/lib/libmote_executorch.so",
    }


@pytest.mark.long
def test_an_installed_wheel_finds_its_plugins(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]; sys.path.append(sys.argv[2])\n"
        "from mote_runtime import get_library_path\n"
        "print(get_library_path('onnxruntime'), get_library_path('executorch'), sep='\\n')"
    )
    # -S: without the .pth files, and so without the editable install of the source tree.
    command = [sys.executable, "-S", "-c", code, tmp_path, sysconfig.get_path("purelib")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "mote_runtime" / "lib"
    assert result.stdout.split() == [str(folder / "libmote_ort.so"), str(folder / "libmote_executorch.so")]
