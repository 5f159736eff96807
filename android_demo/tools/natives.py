"""Native code: for this machine, as the JVM tests load it, and for Android without the NDK."""

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from android_demo.tools.paths import BUILD, CACHE, PROJECT, PYTHON, VERSIONS
from android_demo.tools.run import MissingPackageError, Step, empty, files_below, java_home, note, run

SOURCES = PROJECT / "engine" / "src" / "main" / "cpp"
DESKTOP = BUILD / "desktop"
DESKTOP_LIBRARIES = DESKTOP / "lib"
HERE = Path(__file__).parent / "android_native"
# Each ABI of the app and the processor's name in targets and headers.
ABIS = {"arm64-v8a": "aarch64", "x86_64": "x86_64"}
LIBRARIES = ("libmote_ort.so", "libmote_jni.so")
# This package from PyPI carries musl's headers for all processors.
HEADERS_PACKAGE = "ziglang==0.17.1"
HEADERS_FOLDER = "ziglang/lib/libc/include"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fno-exceptions", "-fno-rtti", "-nostdlibinc", "-nostdinc++")
# Nothing of it may be seen from outside: another library's memory is none of ours.
HIDDEN = (
    "-fvisibility=hidden",
    "-fvisibility-global-new-delete=force-hidden",
    "-D_LIBCPP_DISABLE_VISIBILITY_ANNOTATIONS",
)


def build_desktop() -> None:
    """Builds all libraries of the engine for this machine into DESKTOP_LIBRARIES; CMake knows what changed."""
    _build(DESKTOP, "this machine")


def build_android(abi: str) -> list[Path]:
    """Builds LIBRARIES for an ABI of Android; their paths."""
    sysroot = _prepare_sysroot(abi)
    folder = BUILD / "native" / abi
    _build(
        *(
            folder,
            f"Android on {abi}",
            f"-DCMAKE_TOOLCHAIN_FILE={HERE / 'toolchain.cmake'}",
            f"-DMOTE_ANDROID_ABI={abi}",
        ),
        *(f"-DMOTE_ANDROID_SYSROOT={sysroot}", f"-DMOTE_ANDROID_API={VERSIONS['min-sdk']}"),
    )
    return [folder / "lib" / name for name in LIBRARIES]


def allowed_imports() -> dict[str, set[str]]:
    """The system libraries that our libraries may need, and what they may import of each: android_native/bionic.txt."""
    allowed: dict[str, set[str]] = {}
    for line in (HERE / "bionic.txt").read_text().splitlines():
        if not line.startswith("#"):
            library, *names = line.split()
            allowed.setdefault(library, set()).update(names)
    return allowed


def _build(folder: Path, where: str, *options: str) -> None:
    # With the environment's cmake and ninja, newer than the system's, and its Python, through which CMake finds ExecuTorch.
    tools = PYTHON.parent if PYTHON.is_file() else Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    cmake = shutil.which("cmake", path=environment["PATH"]) or "cmake"
    options = (
        "-G",
        "Ninja",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'lib'}",
        *options,
    )
    # CMake does not know of the stubs, against which a library must be linked anew.
    step = Step(folder.with_suffix(".stamp"), files_below(HERE, "*"), options)
    if step.is_due():
        note(f"configuring native code for {where}")
        run(cmake, "-S", SOURCES, "-B", empty(folder), *options, env=environment)
        step.done()
    run(cmake, "--build", folder, env=environment)


def _prepare_sysroot(abi: str) -> Path:
    """What the toolchain file needs of a system: include/ and lib/, the latter with stubs that have nothing but allowed names."""
    folder = BUILD / "sysroot" / abi
    step = Step(folder / "stamp", files_below(HERE, "*"), HEADERS_PACKAGE, FLAGS, HIDDEN)
    if not step.is_due():
        return folder
    include, lib = empty(folder) / "include", folder / "lib"
    lib.mkdir()
    for source in ("generic-musl", f"{ABIS[abi]}-linux-musl"):
        shutil.copytree(_musl_headers() / source, include, dirs_exist_ok=True)
    shutil.copytree(HERE / "include", include, dirs_exist_ok=True)
    for header in _jni_headers():
        shutil.copy(header, include)
    clang = ("clang++-19", f"--target={ABIS[abi]}-linux-android{VERSIONS['min-sdk']}")
    for library, names in allowed_imports().items():
        stub = lib / f"{library}.S"
        stub.write_text("".join(f".globl {name}\n.type {name}, %function\n{name}:\n" for name in sorted(names)))
        run(*clang, "-shared", "-nostdlib", "-fuse-ld=lld-19", f"-Wl,-soname,{library}", stub, "-o", lib / library)
    protection = ["-mbranch-protection=standard"] if abi == "arm64-v8a" else []
    headers = ["-D_LIBCPP_HAS_NO_LOCALIZATION", "-isystem", "/usr/lib/llvm-19/include/c++/v1", "-isystem", str(include)]
    run(*clang, *FLAGS, *HIDDEN, *protection, *headers, "-c", HERE / "cxx.cpp", "-o", lib / "cxx.o")
    step.done()
    return folder


def _jni_headers() -> list[Path]:
    """jni.h and jni_md.h of the JDK: the interface is that of all JVMs, the types those of 64-bit Linux."""
    include = java_home() / "include"
    headers = [include / "jni.h", include / "linux" / "jni_md.h"]
    if not all(header.is_file() for header in headers):
        raise MissingPackageError(
            f"{headers[0]} is missing: install the package openjdk-17-jdk-headless (Debian, Ubuntu)"
        )
    return headers


def _musl_headers() -> Path:
    """A folder with a folder for each processor, downloaded once."""
    target = CACHE / f"musl-headers-{HEADERS_PACKAGE.rpartition('=')[2]}"
    if target.is_dir():
        return target
    note(f"downloading {HEADERS_PACKAGE} for its headers (100 MB)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, HEADERS_PACKAGE)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wanted = (
                f"{HEADERS_FOLDER}/{source}/"
                for source in ("generic-musl", *(f"{p}-linux-musl" for p in ABIS.values()))
            )
            prefixes = tuple(wanted)
            wheel.extractall(folder, [entry for entry in wheel.namelist() if entry.startswith(prefixes)])
        (folder / HEADERS_FOLDER).rename(target)
    return target
