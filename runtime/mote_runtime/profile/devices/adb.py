"""The `adb` program of Android's platform-tools, called with limits: on time, on what it answers and on what it brings.

Whether a command ran to its end is never read from adb's own exit code, which is 0 where the device vanished in the middle
of a command (and always on Android 6): each command ends by printing its exit code behind a mark.
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mote_runtime.errors import MoteError

COMMAND_TIMEOUT_S = 60.0
MAX_OUTPUT_BYTES = 4 << 20
_END_MARK = "mote-exit-code"
_POLL_S = 0.1
_SLOWEST_TRANSFER = 512 << 10  # bytes per second: an old phone on a bad cable
_DEVICE_FULL = "No space left on device"
_STATE = re.compile(r"no permissions\b|\S+")
_LOG_PREFIX = re.compile(r"^adb [A-Z] [^]]*\.cpp:\d+\] ")
_MODEL = re.compile(r"\bmodel:(\S+)")


class AdbError(MoteError):
    """adb is missing, refused something, or a command on the device failed."""


class DeviceLostError(AdbError):
    """The device went away."""


class DeviceFullError(AdbError):
    """The device has no space left."""


class AdbTimeoutError(AdbError):
    """adb or the device did not answer in time."""


@dataclass(frozen=True, slots=True)
class AttachedDevice:
    """A line of `adb devices -l`; `state` is "device" where it can be used, `model` empty where adb does not know it."""

    serial: str
    state: str
    model: str

    def __str__(self) -> str:
        """Its serial number, with the model where that is known."""
        serial = plain(self.serial)
        return f"{serial} ({plain(self.model.replace('_', ' '))})" if self.model else serial


@dataclass(frozen=True, slots=True)
class Output:
    """What a command gave back."""

    exit_code: int
    stdout: str
    stderr: str

    def last_words(self) -> str:
        """One line that says best what went wrong, made fit for a message; empty where nothing was said."""
        lines = [line.strip() for line in (self.stderr + "\n" + self.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("adb: error", "error:", "adb: "))]
        spoken = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return plain(_LOG_PREFIX.sub("", (errors or spoken[-1:] or lines[-1:] or [""])[0]))


def plain(text: str, length: int = 300) -> str:
    """Text of a device or a program for a message: on one line, without control characters, at most `length` of it."""
    text = "".join(character if character.isprintable() else " " for character in text.strip())
    return text if len(text) <= length else text[:length] + "..."


class Adb:
    """The program; a device of it is a `Device`."""

    def __init__(self, program: Path) -> None:
        """`program` is an executable, which is not tried yet."""
        self._program = program

    @classmethod
    def find(cls, program: str | None = None) -> "Adb":
        """The program given, or that of the environment variable ADB, or `adb` on the PATH; raises AdbError."""
        wanted = program or os.environ.get("ADB")
        found = shutil.which(wanted or "adb")
        if found is None:
            where = (
                f"the adb program {wanted!r} is not there or cannot be executed" if wanted else "no adb is on the PATH"
            )
            raise AdbError(
                f"{where}; install Android's platform-tools (Debian, Ubuntu: apt-get install adb), "
                "or name the program with --adb or the environment variable ADB"
            )
        return cls(Path(found))

    def devices(self) -> tuple[AttachedDevice, ...]:
        """What is attached, usable or not; raises AdbError."""
        output = self.run(["devices", "-l"], COMMAND_TIMEOUT_S, "listing devices")
        _, listed, lines = output.stdout.partition("List of devices attached")
        if output.exit_code or not listed:
            raise AdbError(
                f"{self._program} devices -l failed with exit code {output.exit_code} "
                f"({output.last_words() or 'it said nothing'}); expected Android's adb"
            )
        return tuple(device for line in lines.splitlines() if (device := _attached_device(line)))

    def run(
        self, arguments: Sequence[str], timeout_s: float, doing: str, check: Callable[[], None] | None = None
    ) -> Output:
        """Run adb; `check` is called again and again meanwhile and ends it by raising. Raises AdbError.

        Output goes through files: the server that adb may start would keep a pipe open.
        """
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(
                    [str(self._program), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,  # Ctrl-C is for us, who then clean up through adb
                )
            except OSError as error:
                raise AdbError(f"{self._program} cannot be run ({error.strerror}); expected Android's adb") from error
            try:
                _wait(process, time.monotonic() + timeout_s, check, (stdout, stderr))
            except subprocess.TimeoutExpired:
                raise AdbTimeoutError(f"{doing} took longer than {timeout_s:.0f} s") from None
            finally:
                if process.poll() is None:
                    process.kill()  # adbd then hangs up on the command's shell
                    process.wait()
            return Output(process.returncode, _text(stdout), _text(stderr))


def _wait(
    process: "subprocess.Popen[bytes]", deadline: float, check: Callable[[], None] | None, outputs: Sequence[IO[bytes]]
) -> None:
    while True:
        try:
            process.wait(min(_POLL_S, max(deadline - time.monotonic(), 0.001)))
            ended = True
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise
            ended = False
        if any(os.fstat(output.fileno()).st_size > MAX_OUTPUT_BYTES for output in outputs):
            raise AdbError(f"adb answered with more than {MAX_OUTPUT_BYTES >> 20} MiB; the device is not to be trusted")
        if check is not None:
            check()
        if ended:
            return


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read(MAX_OUTPUT_BYTES).decode("utf-8", errors="replace").replace("\r\n", "\n")


def _attached_device(line: str) -> AttachedDevice | None:
    serial, _, rest = line.strip().partition("\t") if "\t" in line else line.strip().partition(" ")
    state = _STATE.match(rest.strip())
    if not serial or serial == "*" or state is None:  # "* daemon started successfully"
        return None
    model = _MODEL.search(rest)
    return AttachedDevice(serial, state[0], model[1] if model else "")


@dataclass(frozen=True, slots=True)
class Device:
    """An attached device. Methods raise DeviceLostError where it went away, AdbTimeoutError where it does not answer."""

    adb: Adb
    serial: str

    def _run(
        self, arguments: Sequence[str], timeout_s: float, doing: str, check: Callable[[], None] | None = None
    ) -> Output:
        return self.adb.run(
            ["-s", self.serial, *arguments], timeout_s, f"{doing} on device {plain(self.serial)}", check
        )

    def is_there(self) -> bool:
        """Whether adb can use it now."""
        try:
            return self._run(["get-state"], COMMAND_TIMEOUT_S, "asking for the state").stdout.strip() == "device"
        except AdbError:
            return False

    def lost(self, doing: str, output: Output) -> DeviceLostError:
        """The error for a device that went away while `doing`, to be raised."""
        words = output.last_words()
        said = f" (adb: {words.removeprefix('adb: ')})" if words else ""
        return DeviceLostError(f"the connection to device {plain(self.serial)} was lost while {doing}{said}")

    def shell(self, script: str, doing: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Output:
        """Run a script in the device's sh, whatever its exit code; names in it are the caller's to quote."""
        output = self._run(["shell", f"(\n{script}\n)\ncode=$?; echo; echo {_END_MARK} $code"], timeout_s, doing)
        stdout, mark, code = output.stdout.rpartition(f"\n{_END_MARK} ")
        if not mark or not code.strip().isdigit():
            raise self.lost(doing, output)
        return Output(int(code), stdout, output.stderr)

    def ask(self, script: str, doing: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """The stdout of a script that must end with exit code 0; raises AdbError, DeviceFullError."""
        output = self.shell(script, doing, timeout_s)
        if output.exit_code:
            words = output.last_words() or f"exit code {output.exit_code}"
            kind = DeviceFullError if _DEVICE_FULL in output.stderr else AdbError
            raise kind(f"{doing} on device {plain(self.serial)} failed: {words}")
        return output.stdout

    def execute(
        self,
        command: Sequence[str],
        doing: str,
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
        pid_file: str | None = None,
    ) -> Output:
        """Run a program in place of the shell, so that it is hung up on when the connection ends or this is interrupted.

        Exit code 0 may also mean that the connection ended: look for what the program should have written.
        """
        lines = [f"echo $$ >{shlex.quote(pid_file)}"] if pid_file else []
        lines += [f"export {name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
        output = self._run(["shell", "\n".join([*lines, f"exec {shlex.join(command)}"])], timeout_s, doing)
        if output.exit_code and not self.is_there():
            raise self.lost(doing, output)
        return output

    def push(self, source: Path, target: str) -> None:
        """Copy a file to the path `target` of the device; raises AdbError, DeviceFullError."""
        doing = f"pushing {source.name}"
        output = self._run(["push", str(source), target], _transfer_seconds(source.stat().st_size), doing)
        if output.exit_code:
            raise self._transfer_error(doing, output)

    def pull(self, source: str, target: Path, max_bytes: int) -> None:
        """Copy a file of the device to `target`, which is not left behind if it fails or grows beyond `max_bytes`."""
        doing = f"pulling {target.name}"

        def check() -> None:
            if target.exists() and target.stat().st_size > max_bytes:
                raise AdbError(
                    f"{doing} from device {plain(self.serial)} brought more than {max_bytes} bytes; it was refused"
                )

        complete = False
        try:
            output = self._run(["pull", source, str(target)], _transfer_seconds(max_bytes), doing, check)
            if output.exit_code:
                raise self._transfer_error(doing, output)
            if not target.is_file() or target.is_symlink():
                raise AdbError(f"{doing} from device {plain(self.serial)} brought no file")
            complete = True
        finally:
            if not complete:
                target.unlink(missing_ok=True)

    def _transfer_error(self, doing: str, output: Output) -> AdbError:
        if _DEVICE_FULL in output.stderr + output.stdout:
            return DeviceFullError(f"device {plain(self.serial)} has no space left: {output.last_words()}")
        if not self.is_there():
            return self.lost(doing, output)
        return AdbError(f"{doing} failed on device {plain(self.serial)}: {output.last_words()}")


def _transfer_seconds(size: int) -> float:
    return COMMAND_TIMEOUT_S + size / _SLOWEST_TRANSFER
