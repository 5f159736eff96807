"""What mote-profile puts on a device, and how it goes again: one folder, one lock, and folders named by their content.

    /data/local/tmp/mote/
        lock/owner                  who is profiling, and which folders are its own
        model-<hash>/model.onnx ..  files of an export; the hash is of their names and SHA-256 sums
        runner-<hash>/mote-runner .. the runner and its libraries, likewise
        run-<random>/               the prompt, the record and the traces of one run

A file arrives as `<name>.part` and gets its name when the device has computed its SHA-256.
"""

import hashlib
import os
import platform
import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mote_runtime.errors import MoteError
from mote_runtime.profile.devices.adb import AdbError, Device, DeviceFullError, plain

NAME = "mote"
MARGIN_BYTES = 32 << 20  # left free for records and traces, and for the system's sake
_CLEANUP_TIMEOUT_S = 60.0
_OWN_FOLDER = re.compile(r"(model|runner|run)-[0-9a-f]{16}", re.ASCII)
_SUM = re.compile(r"([0-9a-f]{64}) [ *](\S+)", re.ASCII)
_OWNER = re.compile(
    r"host=(\S{1,100}) pid=(\d{1,10}) start=(\d{1,20}) since=([\d:TZ-]{1,30}) folders=(\S{0,2000})", re.ASCII
)

# The locks that runs of this process hold now; a lock of this process that is not among them was left by a lost run.
_held: set[str] = set()


class DeviceBusyError(MoteError):
    """Another profile is running on the device, or one has left its lock there."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A file to be on the device: `source` here, under `name` there, with its size in bytes and SHA-256 in hex."""

    name: str
    source: Path
    bytes: int
    sha256: str
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Bundle:
    """Files that belong into one folder of the device."""

    folder: str
    pieces: tuple[Piece, ...]

    @classmethod
    def by_content(cls, kind: str, pieces: Sequence[Piece]) -> "Bundle":
        """Named by what it holds, so that it is found again; `kind` is "model" or "runner"."""
        listed = "".join(f"{piece.sha256} {piece.name}\n" for piece in sorted(pieces, key=lambda piece: piece.name))
        return cls(f"{kind}-{hashlib.sha256(listed.encode()).hexdigest()[:16]}", tuple(pieces))

    @classmethod
    def of_one_run(cls, pieces: Sequence[Piece] = ()) -> "Bundle":
        """A folder that no other run uses."""
        return cls(f"run-{secrets.token_hex(8)}", tuple(pieces))


@dataclass(slots=True)
class DeviceFolder:
    """mote's folder on a device, locked from `lock` to `clean`.

    `touched` are the paths that may be there because of this run: noted before the device is asked to make them, since
    a command whose answer was lost may have been carried out.
    """

    device: Device
    path: str
    touched: list[str] = field(default_factory=list)
    _owner: str = ""

    @classmethod
    def in_folder(cls, device: Device, working_folder: str) -> "DeviceFolder":
        """Under one of `facts.WORKING_FOLDERS`."""
        return cls(device, f"{working_folder}/{NAME}")

    def place(
        self, bundles: Sequence[Bundle], keep: Sequence[Bundle], free_bytes: int, say: Callable[[str], None]
    ) -> None:
        """Take the lock and push what is missing, for a run that will leave nothing but `keep`; raises MoteError."""
        self.lock([bundle for bundle in bundles if bundle not in keep])
        missing = self.missing(bundles)
        self.check_space(missing, free_bytes)
        self.make(bundles)
        self.push(missing, say)

    def lock(self, bundles: Sequence[Bundle]) -> None:
        """Take the lock, for a run that will leave nothing of these bundles.

        A lock left by a process of this computer that is gone is taken over, with what that run had left. Raises
        DeviceBusyError, AdbError.
        """
        self._owner = _describe_owner([bundle.folder for bundle in bundles])
        answer = self._try_lock()
        if answer.startswith("held"):
            previous = _OWNER.search(answer)
            if previous is None or not _is_gone(previous):
                raise self._busy(previous)
            ours = {bundle.folder for bundle in bundles}  # what is there of them need not be pushed again
            leftovers = [name for name in previous[5].split(",") if _OWN_FOLDER.fullmatch(name) and name not in ours]
            self.device.ask(
                f"cd {self.path} && rm -rf {shlex.join([*leftovers, 'lock'])}", "removing what a lost run left"
            )
            answer = self._try_lock()
            if answer.startswith("held"):
                raise self._busy(_OWNER.search(answer))
        _held.add(self._owner)

    def _try_lock(self) -> str:
        self.touched = [self.path]
        lock = f"{self.path}/lock"
        answer = self.device.ask(
            f"[ -d {self.path} ] && old=old\n"
            f"mkdir -p {self.path} || exit 1\n"
            f"if mkdir {lock} 2>/dev/null; then echo {shlex.quote(self._owner)} >{lock}/owner && echo mine $old; "
            f"else echo held; cat {lock}/owner 2>/dev/null; true; fi",
            "taking the lock",
        )
        if answer.startswith("held"):
            self.touched = []
        elif answer.split() == ["mine", "old"]:  # others' things may be in it
            self.touched = [lock]
        return answer

    def _busy(self, owner: re.Match[str] | None) -> DeviceBusyError:
        who = (
            f"process {owner[2]} on {plain(owner[1])}, since {owner[4]}" if owner else "an owner that it does not name"
        )
        return DeviceBusyError(
            f"device {plain(self.device.serial)} is in use by another mote-profile ({who}); wait until that has ended or, if it "
            f"is not running any more, remove its lock with: {self._by_hand([f'{self.path}/lock'])}"
        )

    def missing(self, bundles: Sequence[Bundle]) -> list[tuple[Bundle, Piece]]:
        """The files that are not on the device, or differ from what they should be; raises AdbError."""
        paths = [f"{bundle.folder}/{piece.name}" for bundle in bundles for piece in bundle.pieces]
        seconds = 60 + sum(piece.bytes for bundle in bundles for piece in bundle.pieces) / (20 << 20)
        answer = self.device.ask(
            f"cd {self.path} && command -v sha256sum >/dev/null || exit 1\n"
            + f"for f in {shlex.join(paths)}; do [ -f $f ] && sha256sum $f; done\ntrue",
            "comparing what is there",
            seconds,
        )
        sums = {match[2]: match[1] for line in answer.splitlines() if (match := _SUM.fullmatch(line.strip()))}
        return [
            (bundle, piece)
            for bundle in bundles
            for piece in bundle.pieces
            if sums.get(f"{bundle.folder}/{piece.name}") != piece.sha256
        ]

    def check_space(self, missing: Sequence[tuple[Bundle, Piece]], free_bytes: int) -> None:
        """Raises DeviceFullError where the missing files do not fit; nothing was pushed then."""
        needed = sum(piece.bytes for _, piece in missing)
        if needed + MARGIN_BYTES > free_bytes:
            raise DeviceFullError(
                f"device {plain(self.device.serial)} has {_megabytes(free_bytes)} free in {self.path}, but "
                f"{_megabytes(needed)} have to be pushed and {_megabytes(MARGIN_BYTES)} should stay free; make room there "
                "(mote-profile --no-cleanup keeps models in that folder, which can be removed)"
            )

    def make(self, bundles: Sequence[Bundle]) -> None:
        """Make the bundles' folders; raises AdbError."""
        folders = [f"{self.path}/{bundle.folder}" for bundle in bundles]
        self.touched += folders
        self.device.ask(f"mkdir -p {shlex.join(folders)}", "making its folders")

    def push(self, missing: Sequence[tuple[Bundle, Piece]], say: Callable[[str], None]) -> None:
        """Push files and have the device compute their sums; raises AdbError, DeviceFullError."""
        for bundle, piece in missing:
            say(f"pushing {piece.name} ({_megabytes(piece.bytes)})")
            self.device.push(piece.source, f"{self.path}/{bundle.folder}/{piece.name}.part")
        if not missing:
            return
        lines = [
            "put() { s=$(sha256sum <$2.part); s=${s%% *}; "
            '[ "$s" = $1 ] && chmod $3 $2.part && mv -f $2.part $2 || echo "bad $2 $s"; }'
        ]
        lines += [
            f"put {piece.sha256} {shlex.quote(f'{self.path}/{bundle.folder}/{piece.name}')} {755 if piece.executable else 644}"
            for bundle, piece in missing
        ]
        answer = self.device.ask(
            "\n".join(lines), "comparing what was pushed", 60 + sum(piece.bytes for _, piece in missing) / (20 << 20)
        )
        if bad := next((line.split() for line in answer.splitlines() if line.startswith("bad ")), None):
            raise AdbError(
                f"{plain(bad[1].rsplit('/', 1)[-1])} has SHA-256 {plain(bad[2]) if len(bad) > 2 else 'unknown'} on device "
                f"{plain(self.device.serial)}, which is not what was to be sent; it changed since the export or on the way, so "
                "export it anew, or mistrust the cable and the device's storage"
            )

    def clean(self, keep: Sequence[Bundle]) -> None:
        """Stop what may still run, and remove what this run made and used, except `keep`, and the lock.

        mote's own folder goes too if nothing is left in it. Raises AdbError where that cannot be done.
        """
        _held.discard(self._owner)
        if not self.touched:
            return
        kept = {f"{self.path}/{bundle.folder}" for bundle in keep}
        lock = f"{self.path}/lock"
        gone = [path for path in self.touched if path not in kept and path not in (self.path, lock)]
        self.device.ask(
            "".join(_stop_script(path) for path in gone if "/run-" in path)
            + f"rm -rf {shlex.join(gone)}\n"
            # Another's lock is not ours to remove, even if we could not read that it was one.
            + f"case \"$(cat {lock}/owner 2>/dev/null)\" in ''|{shlex.quote(self._owner)}) rm -rf {lock};; esac\n"
            + f"rmdir {self.path} 2>/dev/null\n"
            + f"for f in {shlex.join(gone)}; do [ -e $f ] && echo $f is still there >&2 && exit 1; done; true",
            "cleaning up",
            _CLEANUP_TIMEOUT_S,
        )
        self.touched = []

    def remedy(self) -> str:
        """What may be left, and the command that removes it; empty where there is nothing."""
        if not self.touched:
            return ""
        paths = [self.path] if self.path in self.touched else self.touched
        return (
            f"{' and '.join(paths)} may be left on it: run mote-profile again, or remove {'it' if len(paths) == 1 else 'them'} "
            f"with: {self._by_hand(paths)}"
        )

    def _by_hand(self, paths: Sequence[str]) -> str:
        return f"adb -s {shlex.quote(plain(self.device.serial))} shell rm -rf {shlex.join(paths)}"


def _stop_script(run_folder: str) -> str:
    """Ends the runner of a run whose connection was cut; its process id may be another program's by now."""
    name = run_folder.rsplit("/", 1)[-1]
    return (
        f"p=$(cat {run_folder}/pid 2>/dev/null); case $p in ''|*[!0-9]*) ;; "
        f"*) grep -q {name} /proc/$p/cmdline 2>/dev/null && kill -9 $p && sleep 0.2;; esac\n"
    )


def _describe_owner(folders: Sequence[str]) -> str:
    host = re.sub(r"[^A-Za-z0-9_.-]", "_", platform.node() or "unknown")[:100]
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"host={host} pid={os.getpid()} start={_start_time(os.getpid())} since={since} folders={','.join(folders)}"


def _is_gone(owner: re.Match[str]) -> bool:
    """Whether the run that took a lock was one of this computer and has ended; its process id may be in use anew."""
    host = _describe_owner([]).split(" ", 1)[0].removeprefix("host=")
    if owner[1] != host:
        return False
    if int(owner[2]) == os.getpid():
        return owner[0] not in _held
    return _start_time(int(owner[2])) != int(owner[3])


def _start_time(pid: int) -> int:
    """When a process of this computer started, in the kernel's ticks; 0 where there is none, or no /proc."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
