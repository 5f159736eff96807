"""Brings files from a device, each with a limit on its size and compared with the device's own sum of it."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mote_runtime.errors import MoteError
from mote_runtime.profile.devices.adb import AdbError, Device, plain
from mote_runtime.profile.record import Record
from mote_runtime.profile.strict import read_json

MAX_RECORD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to bring: its path on the device, the most bytes that it may have, and where it goes here."""

    path: str
    max_bytes: int
    target: Path


def pull_files(device: Device, files: Mapping[str, Wanted], writer: str, advice: str) -> dict[str, Path]:
    """The files by what they are, as they now lie here.

    Args:
        device: where they are.
        files: what each is, for messages, and where.
        writer: who should have written them; `advice`: what to do where it has not.

    Raises:
        AdbError: one is not there, is too large, or changed on the way.
    """
    lines = ["look() { if [ -f $1 ]; then wc -c <$1 && sha256sum <$1 || exit 1; else echo 0; echo -; fi; }"]
    lines += [f"look {shlex.quote(wanted.path)}" for wanted in files.values()]
    sums = device.ask("\n".join(lines), "looking for its results").split("\n")
    answers = [line.split() for line in sums if line.strip()]
    found = {}
    for index, (what, wanted) in enumerate(files.items()):
        size, digest = answers[2 * index : 2 * index + 2] if len(answers) == 2 * len(files) else ([""], [""])
        if not size[0].isdecimal() or digest[0] == "-":
            raise AdbError(f"{writer} ended without writing its {what}; {advice}")
        if len(size[0]) > 15 or int(size[0]) > wanted.max_bytes:
            raise AdbError(
                f"the {what} on device {plain(device.serial)} has {plain(size[0])} bytes; expected at most {wanted.max_bytes}"
            )
        device.pull(wanted.path, wanted.target, wanted.max_bytes)
        if _sha256(wanted.target) != digest[0]:
            raise AdbError(
                f"the {what} changed on the way from device {plain(device.serial)}; profile again, and mistrust the cable "
                "if that repeats"
            )
        found[what] = wanted.target
    return found


def read_record(path: Path, runtime: str, device: Device) -> Record:
    """The record of this runtime that was brought from the device; raises MoteError where it is another, or damaged."""
    whose = plain(device.serial)
    record = Record.from_json(read_json(path, MAX_RECORD_BYTES), f"the record of {runtime} from device {whose}")
    if record.runtime != runtime:
        raise MoteError(f"the record from device {whose} is of {record.runtime}; expected {runtime}")
    return record


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
