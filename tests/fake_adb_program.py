"""The stand-in for `adb` as a program: `main` is adb for one command.

It speaks the subset that mote-profile uses, with the real program's texts and exit codes (those of versions 29 to 35), over
folders that stand for devices. Commands run in the real sh, with stand-ins for getprop, dumpsys and df on the PATH, and
/data/local/tmp and the like inside the sandbox. A pushed program is executed only if it is executable on the device, and by
`qemu` if it is built for 64-bit ARM. As adbd does, a command's shell is sent SIGHUP when its client dies.

It is started hundreds of times, so it imports what takes no time: settings and log are Python literals, in marshal's format.
"""
# ruff: noqa: PTH101, PTH103, PTH108, PTH110, PTH113, PTH116, PTH120, PTH123

import marshal
import os
import sys
import time

# Folders and files of a device that are in its sandbox; whatever else a command names is this machine's.
_MAPPED = (
    "/data/local/tmp",
    "/var/tmp",
    "/sdcard",
    "/sys/devices",
    "/sys/class",
    "/sys/firmware",
    "/proc/meminfo",
    "/lib/ld-",
)
_AARCH64 = 183


def main(folder: str) -> None:
    """The program: `sys.argv` as adb's, `folder` that of `FakeAdb`."""
    code = Program(folder).run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Program:
    """adb for one command.

    Settings: `devices`; `qemu`, the command that runs 64-bit ARM programs; `full_after`, bytes that can be pushed before the
    device is full; `vanish_at`, the number of the command (from 1) at which the device vanishes, and `vanish_during`, whether
    it does so in the middle of it; `hang_on`, a word of a command that never answers; `corrupt`, the end of the name of a file
    that arrives changed.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.settings = marshal.loads(_read(f"{folder}/control"))

    def run(self, arguments: list[str]) -> int:
        """The exit code of a command."""
        log = f"{self.folder}/log"
        commands = marshal.loads(_read(log)) if os.path.exists(log) else []
        commands.append(arguments)
        _write(log, marshal.dumps(commands))
        number = len(commands)
        vanishing = number == self.settings.get("vanish_at")
        during = vanishing and bool(self.settings.get("vanish_during"))
        if vanishing and not during:
            self._vanish()
        if (word := self.settings.get("hang_on")) and any(word in argument for argument in arguments):
            time.sleep(3600)
        code = self._dispatch(arguments, during)
        if during:
            self._vanish()
        return code

    def _vanish(self) -> None:
        _write(f"{self.folder}/gone", b"")

    def _dispatch(self, arguments: list[str], vanishing: bool) -> int:
        if arguments == ["devices", "-l"]:
            return self._devices()
        serial = None
        if arguments[0] == "-s":
            serial, arguments = arguments[1], arguments[2:]
        device, trouble = self._find(serial)
        verb = arguments[0]
        if device is None:
            transfers = verb in ("push", "pull")
            return _fail(f"adb: error: failed to get feature set: {trouble}" if transfers else f"error: {trouble}")
        root = f"{self.folder}/{device['serial']}"
        if verb == "get-state":
            print("device")
            return 0
        if verb == "push" and len(arguments) == 3:
            return self._push(root, arguments[1], arguments[2], vanishing)
        if verb == "pull" and len(arguments) == 3:
            return self._pull(root, arguments[1], arguments[2], vanishing)
        if verb == "shell" and len(arguments) > 1:
            return self._shell(root, " ".join(arguments[1:]), vanishing)
        return _fail(f"adb: unknown command {verb}")

    def _attached(self) -> list[dict[str, str]]:
        return [] if os.path.exists(f"{self.folder}/gone") else self.settings["devices"]

    def _devices(self) -> int:
        print("List of devices attached")
        for device in self._attached():
            known = "product:sandbox model:Sandbox_1 device:sandbox " if device["state"] == "device" else ""
            print(f"{device['serial']:<22} {device['state']} usb:1-1 {known}transport_id:1")
        print()
        return 0

    def _find(self, serial: str | None) -> tuple[dict[str, str] | None, str]:
        devices = self._attached()
        if serial is not None:
            devices = [device for device in devices if device["serial"] == serial]
            if not devices:
                return None, f"device '{serial}' not found"
        elif len(devices) > 1:
            return None, "more than one device/emulator"
        elif not devices:
            return None, "no devices/emulators found"
        if devices[0]["state"] == "unauthorized":
            return None, (
                "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n"
                "Try 'adb kill-server' if that seems wrong.\nOtherwise check for a confirmation dialog on your device."
            )
        if devices[0]["state"] != "device":
            return None, f"device {devices[0]['state']}"
        return devices[0], ""

    def _push(self, root: str, source: str, target: str, vanishing: bool) -> int:
        content = _read(source)
        path = _to_sandbox(target, root)
        failed = f"adb: error: failed to copy '{source}' to '{target}': "
        used = f"{self.folder}/bytes"
        before = int(_read(used)) if os.path.exists(used) else 0
        room = self.settings.get("full_after")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path):
            os.unlink(path)
        if vanishing:
            _write(path, content[: len(content) // 2])
            return _fail(f"{failed}couldn't read from device")
        if room is not None and before + len(content) > room:
            return _fail(f"{failed}remote write failed: No space left on device")  # adbd removes what it has written
        _write(used, b"%d" % (before + len(content)))
        _write(path, self._arrived(content, target.removesuffix(".part")))
        mode = os.stat(source).st_mode & 0o777
        os.chmod(path, mode | (mode >> 3) & 0o070 | (mode >> 6) & 0o007)  # the owner's bits are everybody's
        print(f"{source}: 1 file pushed, 0 skipped. 37.9 MB/s ({len(content)} bytes in 0.001s)")
        return 0

    def _pull(self, root: str, source: str, target: str, vanishing: bool) -> int:
        path = _to_sandbox(source, root)
        if not os.path.exists(path):
            return _fail(f"adb: error: failed to stat remote object '{source}': No such file or directory")
        if vanishing:
            return 1  # the real one removes what it has written, and says nothing
        content = self._arrived(_read(path), source)
        _write(target, content)
        print(f"{source}: 1 file pulled, 0 skipped. 35.1 MB/s ({len(content)} bytes in 0.001s)")
        return 0

    def _arrived(self, content: bytes, name: str) -> bytes:
        end = self.settings.get("corrupt")
        return content[:-1] + bytes([content[-1] ^ 1]) if end and name.endswith(end) else content

    def _shell(self, root: str, command: str, vanishing: bool) -> int:
        command = self._under_qemu(_to_sandbox(command, root))
        outputs = [f"{self.folder}/{name}-{os.getpid()}" for name in ("stdout", "stderr")]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.chdir(root)
        pid = os.posix_spawnp(
            "setpriv",
            # What the client's death is to adbd, the parent's death is to this shell.
            ["setpriv", "--pdeathsig", "HUP", "sh", "-c", command],
            {"PATH": f"{root}/bin:/usr/bin:/bin", "HOSTNAME": "sandbox"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                *((os.POSIX_SPAWN_OPEN, number, path, flags, 0o600) for number, path in enumerate(outputs, 1)),
            ],
        )
        if vanishing and "\nexec " in f"\n{command}":
            time.sleep(0.05)
            os.kill(pid, 9)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for stream, path in zip((sys.stdout, sys.stderr), outputs, strict=True):
            if not vanishing:
                stream.write(_read(path).decode(errors="replace").replace(root, ""))
            os.unlink(path)
        if vanishing:
            return 0  # as the real one, which reads no exit code any more
        return code if code >= 0 else 128 - code

    def _under_qemu(self, command: str) -> str:
        """`exec PROGRAM` of a 64-bit ARM program by qemu; without the executable bit nothing is run here either."""
        lines = []
        for line in command.split("\n"):
            path = line.removeprefix("exec ").split(" ", 1)[0]
            if (
                line.startswith("exec ")
                and os.path.isfile(path)
                and os.stat(path).st_mode & 0o111
                and _is_aarch64(path)
            ):
                line = f"exec {' '.join(self.settings['qemu'])} {line.removeprefix('exec ')}"
            lines.append(line)
        return "\n".join(lines)


def _is_aarch64(path: str) -> bool:
    with open(path, "rb") as stream:
        header = stream.read(20)
    return header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") == _AARCH64


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)


def _to_sandbox(text: str, root: str) -> str:
    for number, prefix in enumerate(_MAPPED):  # in two steps, as the sandbox may itself be in /var/tmp
        text = text.replace(prefix, f"\0{number}\0")
    for number, prefix in enumerate(_MAPPED):
        text = text.replace(f"\0{number}\0", root + prefix)
    return text
