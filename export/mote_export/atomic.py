"""Files and folders that appear complete or not at all, also after an error, a full disk or an interrupt."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mote_runtime.errors import MoteError


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

    `path` may exist as an empty folder.
    """
    path = path.resolve()  # a link is followed: the folder that it names is replaced, not the link
    created = [parent for parent in path.parents if not parent.exists()]
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
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


def check_output(output: Path) -> None:
    """Raises MoteError unless `output` can be put in place by a rename."""
    if output.is_mount():
        raise MoteError(f"{output} is a mount point, which cannot be replaced: choose a folder inside of it.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        found = "is not empty" if output.is_dir() else "is a file"
        raise MoteError(f"{output} {found}: choose another folder with -o, or remove it first.")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
