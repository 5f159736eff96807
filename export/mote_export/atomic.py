"""Files and folders that appear complete or not at all, also after an error, a full disk or an interrupt."""

import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mote_runtime.errors import MoteError

PARTIAL = ".partial"  # how names of temporary folders end
YOUNG_SECONDS = 60


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed over it when the block succeeds, removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; what is put in place follows the user's umask like any other file.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; renamed to it when the block succeeds, removed with all it holds when it does not.

    `path` may exist as an empty folder. What processes that were killed have left of earlier attempts at it is removed as well.
    """
    path = path.resolve()  # a link is followed: the folder that it names is replaced, not the link
    created = [parent for parent in path.parents if not parent.exists()]
    temporary = None
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(path)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent))
            stack.enter_context(_locked(temporary))
            yield temporary
            umask = _umask()
            for file in [temporary, *temporary.rglob("*")]:
                file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)
            temporary.replace(path)
        except BaseException:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            for parent in created:
                with suppress(OSError):  # not made, or somebody else uses it by now
                    parent.rmdir()
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A lock that ends with the process, however that ends."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks: nothing is taken for abandoned there
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove_abandoned(path: Path) -> None:
    """Removes temporary folders of `path` that nobody holds; a young one may be about to be locked."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        with suppress(OSError):
            if folder.is_symlink() or time.time() - folder.stat().st_mtime < YOUNG_SECONDS:
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def check_output(output: Path) -> None:
    """Raises MoteError unless `output` can be put in place by a rename."""
    if output.is_mount():
        raise MoteError(f"{output} is a mount point, which cannot be replaced: choose a folder inside of it.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        found = "is not empty" if output.is_dir() else "is a file"
        raise MoteError(f"{output} {found}: choose another folder with -o, or remove it first.")


def check_room(output: Path, needed: int, instead: str) -> None:
    """Raises MoteError rather than write until the disk is full; `instead` is what takes less, beside another disk."""
    existing = next(parent for parent in output.resolve().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise MoteError(
            f"{output} would take {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left: choose another with -o, or "
            f"{instead}."
        )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
