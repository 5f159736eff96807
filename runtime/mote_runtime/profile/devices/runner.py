"""The native runner for a device: where its files are on this computer, and whether they are built for that device."""

import os
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mote_runtime.errors import MoteError

RUNNER = "mote-runner"
_LIBRARY = re.compile(r"lib[A-Za-z0-9_.+-]{1,100}\.so(\.[0-9]+)*", re.ASCII)
_ABI = re.compile(r"[A-Za-z0-9_-]{1,40}", re.ASCII)

# ELF's numbers of machines, and what they are called here.
_MACHINES = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "aarch64"}
_ABI_MACHINES = {
    "arm64-v8a": 183,
    "armeabi-v7a": 40,
    "x86_64": 62,
    "x86": 3,
    "linux-aarch64": 183,
    "linux-x86_64": 62,
}
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # of 64-bit ELF files
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_INTERPRETER = 3
_MAX_PROGRAM_HEADERS = 128
_MAX_PATH = 4096


@dataclass(frozen=True, slots=True)
class Runner:
    """The runner's folder for one ABI. `files` are the program, first, and the libraries that lie beside it.

    `loader` is the path that the program's system must have, None for a script or a program without shared libraries.
    """

    abi: str
    files: tuple[Path, ...]
    loader: str | None


def find_runner(abis: Sequence[str], folder: str | Path | None = None) -> Runner:
    """The runner for the first of the device's ABIs that there is one for.

    Args:
        abis: as `Facts.abis`, the best first.
        folder: a folder with the runner, or with a folder for each ABI; default: those of the installation and the cache.

    Raises:
        MoteError: there is none, or it is built for another processor.
    """
    names = [abi for abi in abis if _ABI.fullmatch(abi)]
    bases = _default_folders() if folder is None else [Path(folder)]
    for abi in names:
        for base in bases:
            if (base / abi / RUNNER).is_file():
                return _open(abi, base / abi)
    if folder is not None and names and (Path(folder) / RUNNER).is_file():
        return _open(names[0], Path(folder))
    looked = " and ".join(str(base) for base in bases)
    others = sorted({path.parent.name for base in bases for path in base.glob(f"*/{RUNNER}")})
    found = f"there are runners for {', '.join(others)} only" if others else "there is none"
    wanted = " or ".join(names) or "this device, which names no ABI"
    raise MoteError(
        f"no {RUNNER} for {wanted} in {looked}: {found}; build one (make runner-aarch64 for Linux on 64-bit ARM, the NDK "
        "for Android: docs/runner.md) or name its folder with --runner"
    )


def _default_folders() -> list[Path]:
    folders = [Path(__file__).resolve().parent.parent / "bin"]
    with suppress(metadata.PackageNotFoundError):  # as for the plugins: an editable install has two folders
        folders.append(Path(str(metadata.distribution("mote").locate_file("mote_runtime/bin"))))
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return list(dict.fromkeys([*folders, Path(cache) / "mote" / "runner"]))


def _open(abi: str, folder: Path) -> Runner:
    """The files of a folder, each checked to be for this ABI; raises MoteError."""
    libraries = sorted(path for path in folder.iterdir() if path.is_file() and _LIBRARY.fullmatch(path.name))
    files = (folder / RUNNER, *libraries)
    for path in files:
        _check_machine(path, abi)
    return Runner(abi, files, _loader(files[0]))


def _check_machine(path: Path, abi: str) -> None:
    content = _read(path, 0, 20)
    if content[:4] != b"\x7fELF":
        if path.name == RUNNER and content[:2] == b"#!":  # a script around it is the user's own affair
            return
        raise MoteError(f"{path} is no program or library; expected one for {abi}")
    machine = struct.unpack_from("<H", content, 18)[0] if len(content) == 20 else 0
    expected = _ABI_MACHINES.get(abi, machine)
    if machine != expected:
        raise MoteError(
            f"{path} is built for {_MACHINES.get(machine, f'machine {machine}')}, but the device runs {abi}; "
            "build the runner for it (docs/runner.md) or name its folder with --runner"
        )


def _loader(program: Path) -> str | None:
    """The path of the dynamic loader in a 64-bit ELF program; None where there is none."""
    header = _read(program, 0, _HEADER.size)
    if header[:5] != b"\x7fELF\x02" or len(header) != _HEADER.size:
        return None
    fields = _HEADER.unpack(header)
    offset, count = fields[5], min(fields[10], _MAX_PROGRAM_HEADERS)
    table = _read(program, offset, count * _PROGRAM_HEADER.size)
    for index in range(len(table) // _PROGRAM_HEADER.size):
        segment = _PROGRAM_HEADER.unpack_from(table, index * _PROGRAM_HEADER.size)
        if segment[0] == _INTERPRETER:
            text = _read(program, segment[2], min(segment[5], _MAX_PATH))
            return text.split(b"\0", 1)[0].decode("ascii", errors="replace")
    return None


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except (OSError, OverflowError) as error:
        raise MoteError(f"{path} cannot be read: {error}") from error
