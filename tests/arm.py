"""64-bit ARM on this machine: the runtimes' packages for it, the runner cross-compiled, and QEMU to run it."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
PACKAGES = {"onnxruntime": "1.31.1", "executorch": "1.5.1"}
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
SYSROOT = Path("/usr/aarch64-linux-gnu")  # of Debian's cross compilers
# The machine's own file is an x86 one, over which ONNX Runtime's detection of ARM processors ends the process.
PROCESSOR = """processor\t: {}
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0b
CPU revision\t: 1

"""


def cache_folder() -> Path:
    """Where downloads are kept between runs, outside of the repository."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mote"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def arm_packages() -> Path:
    """A folder with the unpacked packages onnxruntime/ and executorch/ for 64-bit ARM; skips the test where there is no network."""
    target = cache_folder() / "-".join(("aarch64", *(f"{name}-{version}" for name, version in PACKAGES.items())))
    with FileLock(target.with_suffix(".lock")):
        if target.is_dir():
            return target
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            unpacked = Path(folder) / "packages"
            unpacked.mkdir()
            for name, version in PACKAGES.items():
                _download(name, version, Path(folder))
            for wheel in Path(folder).glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(unpacked)
            unpacked.rename(target)
    return target


def _download(name: str, version: str, folder: Path) -> None:
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    result = subprocess.run(
        [*command, "--python-version", "3.11", "-d", folder, f"{name}=={version}"], capture_output=True, text=True
    )
    if result.returncode != 0:
        pytest.skip(f"{name} {version} for ARM cannot be downloaded: {result.stderr.strip().splitlines()[-1:]}")


def build_arm_runner(folder: Path) -> Path:
    """Puts the runner for 64-bit ARM, with both runtimes, into `folder`/runner; the path of the program.

    What was compiled is kept in build/runner-aarch64, where `make runner-aarch64` has it as well.
    """
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing: install g++-aarch64-linux-gnu and qemu-user")
    packages, build, target = arm_packages(), ROOT / "build" / "runner-aarch64", folder / "runner"
    build.parent.mkdir(exist_ok=True)
    with FileLock(build.with_suffix(".lock")):
        _run(
            *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/runtime/core/cmake/aarch64-linux-gnu.cmake",
            f"-DMOTE_EXECUTORCH_ROOT={packages}/executorch",
            f"-DMOTE_ONNXRUNTIME_LIBRARY={packages}/onnxruntime/capi/libonnxruntime.so.{PACKAGES['onnxruntime']}",
        )
        _run("cmake", "--build", build)
        _run("cmake", "--install", build, "--component", "runner", "--prefix", target)
    return target / "mote-runner"


def _run(*command: str | Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


def qemu_command(folder: Path, program: Path, *arguments: str | Path) -> list[str]:
    """The command line that runs a program for 64-bit ARM; `folder` takes what QEMU shows it as its system."""
    root = folder / "arm-root"
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "cpuinfo").write_text("".join(map(PROCESSOR.format, range(os.cpu_count() or 1))))
    if not (root / "lib").exists():
        (root / "lib").symlink_to(SYSROOT / "lib")
    return ["qemu-aarch64", "-L", str(root), str(program), *map(str, arguments)]
