"""What is built and packaged: the libraries stand alone, the wheel holds what it should, our ABI header is right."""

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from mote_runtime import get_library_path

ROOT = Path(__file__).parents[1]
ABI_FOLDER = ROOT / "runtime" / "onnxruntime"
# The official headers are in no Python package; this npm package carries ONNX Runtime's Android archive, which has them.
HEADER_PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
HEADER_ARCHIVE = "package/Plugins/Android/onnxruntime.aar"
HEADER = "onnxruntime_c_api.h"


def readelf(option: str, library: Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is missing: install binutils")
    return subprocess.run(["readelf", option, "-W", library], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("runtime", "needed", "exported"),
    [
        ("onnxruntime", set(), {"RegisterCustomOps"}),
        ("executorch", {"libexecutorch.so", "libexecutorch_threadpool.so"}, set()),
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
    """A folder with the official header: from the environment, or from npm, kept outside of the repository."""
    if folder := os.environ.get("ONNXRUNTIME_INCLUDE_DIR"):
        return Path(folder)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mote" / "onnxruntime-headers"
    if (cache / HEADER).is_file():
        return cache
    if shutil.which("npm") is None:
        pytest.skip("npm is missing and ONNXRUNTIME_INCLUDE_DIR is not set: no official header to compare with")
    with tempfile.TemporaryDirectory() as download:
        result = subprocess.run(
            ["npm", "pack", HEADER_PACKAGE, "--pack-destination", download], capture_output=True, text=True
        )
        if result.returncode != 0:
            pytest.skip(f"npm cannot fetch {HEADER_PACKAGE}: {result.stderr.strip().splitlines()[-1:]}")
        with tarfile.open(next(Path(download).glob("*.tgz"))) as package:
            archive = package.extractfile(HEADER_ARCHIVE)
            assert archive is not None
            content = zipfile.ZipFile(io.BytesIO(archive.read()))
    cache.mkdir(parents=True, exist_ok=True)
    for name in content.namelist():
        if name.startswith("headers/") and name.endswith((".h", ".inc")):
            (cache / Path(name).name).write_bytes(content.read(name))
    return cache


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
        ("kUint8 = 2", "kUint8 = 3", "kUint8"),
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", folder, ROOT],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_the_plugins(wheel: Path) -> None:
    assert re.fullmatch(r"mote-\d+\.\d+\.\d+-py3-none-linux_\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mote_export", "mote_runtime"}
    assert {name for name in names if not name.endswith(".py") and ".dist-info" not in name} == {
        "mote_export/py.typed",
        "mote_runtime/py.typed",
        "mote_runtime/lib/libmote_ort.so",
        "mote_runtime/lib/libmote_executorch.so",
    }


@pytest.mark.slow
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
