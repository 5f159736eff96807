"""Puts a profile's folder in place: complete or not at all, and never over anything but an earlier profile."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from mote_runtime.profile.build import PROFILE_FILE, REPORT_FILE, TRACE_FILE
from mote_runtime.profile.record import FORMAT
from mote_runtime.profile.strict import Fields, ProfileError, read_json

RAW_FOLDER = "traces"  # of a device, as they were recorded
_OURS = frozenset({PROFILE_FILE, REPORT_FILE, TRACE_FILE, RAW_FOLDER})


def check_output(folder: Path) -> None:
    """Whether a profile may be put there: nothing, an empty folder, or an earlier profile. Raises ProfileError."""
    try:
        _check_output(folder)
    except OSError as error:
        raise ProfileError(
            f"{folder} cannot be looked at: {error.strerror or error}; choose another with -o"
        ) from error


def _check_output(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ProfileError(f"{folder} is no folder; choose another with -o")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise ProfileError(
            f"{parent} does not exist, so {folder.name} cannot be written there; make it, or choose another with -o"
        )
    if not os.access(parent, os.W_OK | os.X_OK):  # measuring takes minutes
        raise ProfileError(
            f"{parent} cannot be written to, so {folder.name} cannot be put there; choose another with -o"
        )
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()}
    if names and (not names <= _OURS or not _is_profile(folder / PROFILE_FILE)):
        raise ProfileError(f"{folder} holds something else than an earlier profile; choose another folder with -o")


def _is_profile(path: Path) -> bool:
    try:
        return Fields(read_json(path), "the profile").value("format") == FORMAT
    except ProfileError:
        return False


def write_output(folder: Path, files: Mapping[str, str], traces: Mapping[str, Path] = MappingProxyType({})) -> None:
    """Write the files under a temporary name beside `folder` and put them in its place; raises ProfileError.

    `traces` are files to be copied into its folder `traces`, by name.
    """
    check_output(folder)
    folder = folder.absolute()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            complete = Path(scratch) / "new"
            complete.mkdir()
            for name, content in files.items():
                (complete / name).write_text(content, encoding="utf-8")
            for name, path in traces.items():
                (complete / RAW_FOLDER).mkdir(exist_ok=True)
                shutil.copyfile(path, complete / RAW_FOLDER / name)
            if folder.exists():  # a folder cannot be renamed over one that is not empty
                folder.rename(Path(scratch) / "old")
            try:
                complete.rename(folder)
            except BaseException:  # an interrupt as well: the earlier profile would go with the scratch folder
                if (old := Path(scratch) / "old").exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise ProfileError(f"{folder} cannot be written: {error.strerror or error}") from error
