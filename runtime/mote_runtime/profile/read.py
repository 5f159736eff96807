"""Reads earlier profiles to compare with: a profile's folder, its `profile.json`, or a record of `mote-runner`."""

from pathlib import Path

from mote_runtime.profile.build import PROFILE_FILE
from mote_runtime.profile.record import FORMAT, Record
from mote_runtime.profile.strict import Fields, read_json

MAX_RUNS = 64


def is_profile(path: Path) -> bool:
    """Whether a path names an earlier profile: any file, or a folder with a `profile.json`."""
    return path.is_file() or (path / PROFILE_FILE).is_file()


def read_profile(path: Path) -> list[tuple[str, Record]]:
    """Label and record of each run; raises ProfileError where it is not one."""
    file = path if path.is_file() else path / PROFILE_FILE
    document = read_json(file)
    fields = Fields(document, str(file))
    fields.choice("format", (FORMAT,))
    if not fields.has("runs"):
        record = Record.from_json(document, str(file))
        return [(record.runtime, record)]
    runs = []
    for index, row in enumerate(fields.rows("runs", MAX_RUNS)):
        run = Fields(row, f"{file}: run {index}")
        runs.append((_printable(run.text("label", 500)), Record.from_json(run.value("record"), f"{run.name}: record")))
    return runs


def _printable(text: str) -> str:
    """Without what a terminal could take for a command."""
    return "".join(character if character.isprintable() else "?" for character in text)
