"""Running other programs, and not running them again when nothing changed."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from android_demo.tools.paths import BUILD


class ToolError(Exception):
    """What a person can act on, in one sentence."""


class MissingPackageError(ToolError):
    """A package of the system is not installed."""


# Debian's package of each program.
PACKAGES = {
    "aapt2": "aapt",
    "apksigner": "apksigner",
    "clang++-19": "clang-19",
    "dexdump": "dexdump",
    "java": "openjdk-17-jdk-headless",
    "javac": "openjdk-17-jdk-headless",
    "keytool": "openjdk-17-jdk-headless",
    "ld.lld-19": "lld-19",
    "mvn": "maven",
    "npm": "npm",
    "readelf": "binutils",
    "zipalign": "zipalign",
}


def program(name: str) -> str:
    """The path of a program; MissingPackageError names the package that has it."""
    found = shutil.which(name)
    if found is None:
        raise MissingPackageError(f"{name} is missing: install the package {PACKAGES.get(name, name)} (Debian, Ubuntu)")
    return found


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What the command printed; ToolError with it if the command failed."""
    words = [program(str(command[0])), *map(str, command[1:])]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=env)
    if result.returncode != 0:
        raise ToolError(f"{Path(words[0]).name} ended with {result.returncode}:\n{result.stdout}")
    return result.stdout


def java_home() -> Path:
    """The JDK's folder."""
    return Path(program("javac")).resolve().parents[1]


def note(text: str) -> None:
    print(f"android: {text}", file=sys.stderr, flush=True)


class Step:
    """A step whose result stands until one of its inputs changes: the bytes of files, or words such as options and versions.

    Used as `step = Step(stamp, files, words)`, `if step.is_due(): ...; step.done()`. A step that failed is due again.
    """

    def __init__(self, stamp: Path, files: Iterable[Path], *words: object) -> None:
        self._stamp = stamp
        digest = hashlib.sha256(repr(words).encode())
        for file in sorted(files):
            digest.update(f"{file}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        self._key = digest.hexdigest()

    def is_due(self) -> bool:
        due = not self._stamp.is_file() or self._stamp.read_text() != self._key
        if due:
            self._stamp.unlink(missing_ok=True)
        return due

    def done(self) -> None:
        self._stamp.parent.mkdir(parents=True, exist_ok=True)
        self._stamp.write_text(self._key)


@contextmanager
def building() -> Iterator[None]:
    """One process at a time builds. Not to be entered twice."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def files_below(folder: Path, *patterns: str) -> list[Path]:
    """The files below a folder whose names match; none if there is no such folder."""
    return sorted(file for pattern in patterns for file in folder.rglob(pattern) if file.is_file())


def empty(folder: Path) -> Path:
    """The folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
