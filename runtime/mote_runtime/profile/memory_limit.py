"""Runs a program with less memory than it would like: a control group of its own, whose limit counts file pages as well.

A limit on addresses (`ulimit -v`) counts what is mapped, used or not, and none on resident memory works on Linux. A memory control
group counts the pages that its processes brought in, anonymous ones and those of files, drops file pages at the limit, and ends a
process where that does not suffice. It needs write access to the groups, as root has in most containers.
"""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mote_runtime.errors import MoteError

_MOUNTS, _GROUPS = Path("/proc/self/mountinfo"), Path("/proc/self/cgroup")
_ENTER = 'echo $$ > "$0" || exit 125; exec "$@"'  # of sh: joins the group and becomes the program
_REMOVAL_S = 5.0
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class LimitedRun:
    """How a program ended that ran with limited memory.

    Attributes:
        returncode: as of `subprocess`; -9 where the system ended it.
        stdout, stderr: all of it.
        limit_bytes, peak_bytes: what it was allowed, and the most that it had, pages of files included.
        killed: the system ended a process of the group for lack of memory.
    """

    returncode: int
    stdout: str
    stderr: str
    limit_bytes: int
    peak_bytes: int
    killed: bool


@dataclass(frozen=True, slots=True)
class _Version:
    """The names of one version of control groups."""

    limit: str
    swap: str  # what else must be set, or swap would take what does not fit
    swap_limit: str | None  # None: the limit itself
    peak: str
    kills: str


_V1 = _Version(
    "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", None, "memory.max_usage_in_bytes", "memory.oom_control"
)
_V2 = _Version("memory.max", "memory.swap.max", "0", "memory.peak", "memory.events")


def run_limited(
    command: Sequence[str | os.PathLike[str]],
    limit: int,
    *,
    cold: Iterable[Path] = (),
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> LimitedRun:
    """Run a command to its end with `limit` bytes of memory, pages of files included.

    Pages that another process brought into memory before are that one's: name files that shall count in `cold`, and they are
    dropped first, as far as nobody else uses them. Raises MoteError where no control group can be made, and
    subprocess.TimeoutExpired.
    """
    drop_from_memory(cold)
    with _group(limit) as (folder, version):
        process = subprocess.Popen(
            ["/bin/sh", "-c", _ENTER, folder / "cgroup.procs", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=None if environment is None else dict(environment),
        )
        with process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return LimitedRun(
            returncode=process.returncode,
            stdout=out,
            stderr=err,
            limit_bytes=limit,
            peak_bytes=_read_number(folder / version.peak),
            killed=_count_kills(folder / version.kills) > 0,
        )


def drop_from_memory(files: Iterable[Path]) -> None:
    """Write files back and drop their pages from memory, as far as no process has them mapped; raises OSError."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _group(limit: int) -> Iterator[tuple[Path, _Version]]:
    name, reasons = f"mote-{os.getpid()}-{next(_numbers)}", []
    for parent, version in _candidates():
        folder = parent / name
        try:
            folder.mkdir()
        except OSError as error:
            reasons.append(str(error))
            continue
        try:
            _set_limit(folder, version, limit)
        except OSError as error:
            reasons.append(str(error))
            _remove(folder)
            continue
        try:
            yield folder, version
        finally:
            _remove(folder)
        return
    raise MoteError(
        f"no control group for memory can be made ({'; '.join(reasons) or 'none is mounted'}); run as root where "
        "/sys/fs/cgroup is writable, as in a container started with --privileged"
    )


def _candidates() -> Iterator[tuple[Path, _Version]]:
    """Groups under which one can be made, with their version: this process's own and those above it."""
    own = {
        controllers: path
        for line in _read(_GROUPS).splitlines()
        for _, controllers, path in [line.split(":", 2)]
        if controllers == "" or "memory" in controllers.split(",")
    }
    for line in _read(_MOUNTS).splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind == "cgroup" and "memory" in options.split(","):
            version, path = _V1, next((path for names, path in own.items() if names), "/")
        elif kind == "cgroup2":
            version, path = _V2, own.get("", "/")
        else:
            continue
        relative = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
        for inner in (relative, *relative.parents):
            yield Path(mount) / inner, version


def _set_limit(folder: Path, version: _Version, limit: int) -> None:
    (folder / version.limit).write_text(str(limit))
    with contextlib.suppress(FileNotFoundError):  # a system that does not count swap
        (folder / version.swap).write_text(version.swap_limit or str(limit))


def _remove(folder: Path) -> None:
    """With the processes left in it: a group that holds some cannot be removed."""
    deadline = time.monotonic() + _REMOVAL_S
    while True:
        for line in _read(folder / "cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:  # those that ended leave it a moment later
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _read_number(path: Path) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0


def _count_kills(path: Path) -> int:
    found = re.search(r"^oom_kill (\d+)$", _read(path), re.MULTILINE)
    return int(found.group(1)) if found else 0
