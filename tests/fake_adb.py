"""A stand-in for `adb` and the devices behind it, for tests without a phone.

`FakeAdb(folder)` makes an executable `adb` that speaks the subset mote-profile uses, with the real program's texts and exit
codes (those of version 29 to 35), over folders that stand for devices. Commands run in the real sh, with stand-ins for
getprop, dumpsys and df on the PATH, /data/local/tmp and the like inside the sandbox; a pushed program is executed only if the
device has it as executable, and under `qemu` if it is built for 64-bit ARM. As adbd does, the shell of a command is sent
SIGHUP when its client dies.

Faults come from `control`: a device that is not there, unauthorized or full, or one that vanishes at the k-th command, before
it or in the middle of it, until `replug`.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

SERIAL = "FA4E01"
# Folders and files of a device that are in its sandbox; whatever else a command names is this machine's.
MAPPED = re.compile(r"(?<![\w.-])(/data/local/tmp|/var/tmp|/sys/(?:devices|class|firmware)|/proc/meminfo|/lib/ld-)")
LOADER = "/lib/ld-linux-aarch64.so.1"
_AARCH64 = 183

PIXEL = {
    "ro.product.manufacturer": "Stand-in",
    "ro.product.model": "Sandbox 1",
    "ro.soc.manufacturer": "Paper",
    "ro.soc.model": "P-1",
    "ro.hardware": "sandbox",
    "ro.build.version.release": "15",
    "ro.build.version.sdk": "35",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a",
}


class FakeAdb:
    """The test's side: makes the program and its devices, sets faults, and looks at what was left."""

    def __init__(self, folder: Path, qemu: list[str] | None = None) -> None:
        self.folder = folder
        self.program = folder / "adb"
        folder.mkdir(parents=True)
        # -S: site-packages are not needed and take longer than the rest.
        self.program.write_text(
            f"#!{sys.executable} -ES\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"import fake_adb\nfake_adb.main({str(folder)!r})\n"
        )
        self.program.chmod(0o755)
        self._settings: dict[str, object] = {"devices": [], "qemu": qemu or []}
        self.add_device()

    def add_device(self, serial: str = SERIAL, state: str = "device", *, android: bool = True) -> Path:
        """A device's sandbox."""
        root = self.folder / serial
        (root / ("data/local/tmp" if android else "var/tmp")).mkdir(parents=True)
        (root / "lib").mkdir()
        (root / LOADER[1:]).touch()
        _make_sysfs(root)
        _make_programs(root, PIXEL if android else {})
        self.control(devices=[*self._settings["devices"], {"serial": serial, "state": state}])
        return root

    def control(self, **settings: object) -> None:
        """Change how it behaves; see `_Program`."""
        self._settings |= settings
        (self.folder / "control.json").write_text(json.dumps(self._settings))

    def replug(self) -> None:
        """A device that vanished is there again, with what was on it; nothing vanishes any more; count and log are new."""
        self.control(vanish_at=0)
        for name in ("gone", "log"):
            (self.folder / name).unlink(missing_ok=True)

    def log(self) -> list[list[str]]:
        """The commands since the beginning or `replug`."""
        path = self.folder / "log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def pushed(self) -> list[str]:
        """Names of the files pushed, as the device has them."""
        return [command[-1].rsplit("/", 1)[-1].removesuffix(".part") for command in self.log() if "push" in command]

    def left(self, serial: str = SERIAL) -> list[str]:
        """Every path that lies in the device's folders for programs."""
        root = self.folder / serial
        bases = [base for base in (root / "data/local/tmp", root / "var/tmp") if base.exists()]
        return sorted(f"/{path.relative_to(root)}" for base in bases for path in base.rglob("*"))

    def run_by_hand(self, command: str) -> None:
        """Run a command that a message told the user to run, with this adb as adb."""
        environment = os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}"}
        subprocess.run(command, shell=True, check=True, env=environment, timeout=60)


def _make_sysfs(root: Path) -> None:
    for number, fastest in enumerate((1_800_000, 2_900_000)):
        folder = root / f"sys/devices/system/cpu/cpu{number}/cpufreq"
        folder.mkdir(parents=True)
        for name, value in {
            "cpuinfo_max_freq": fastest,
            "scaling_max_freq": fastest,
            "scaling_cur_freq": fastest // 2,
            "scaling_governor": "schedutil",
        }.items():
            (folder / name).write_text(f"{value}\n")
    zone = root / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("41500\n")
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal:        7890123 kB\nMemFree: 1 kB\nMemAvailable:    4567890 kB\n")


def _make_programs(root: Path, properties: dict[str, str]) -> None:
    """getprop and dumpsys (on Android), and df, which tells what the file `free_kb` says."""
    (root / "bin").mkdir()
    (root / "free_kb").write_text("10000000\n")
    (root / "skin").write_text("31.5\n")
    (root / "status").write_text("0\n")
    programs = {
        "df": f"echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'\n"
        f'read -r free <{root}/free_kb\necho "/dev/block/dm-53 110000000 99 $free 1% /data/user/0"\n'
    }
    if properties:
        cases = "".join(f"{name}) echo {value!r};;\n" for name, value in properties.items())
        programs["getprop"] = f'case "$1" in\n{cases}*) echo;;\nesac\n'
        programs["dumpsys"] = f"""\
case "$1" in
battery) printf 'Current Battery Service state:\\n  AC powered: false\\n  USB powered: true\\n  level: 87\\n  temperature: 284\\n';;
thermalservice) read -r skin <{root}/skin; read -r status <{root}/status
printf 'IsStatusOverride: false\\nThermal Status: %s\\nCached temperatures:\\n' "$status"
printf '\\tTemperature{{mValue=77.0, mType=3, mName=skin, mStatus=0}}\\nHAL Ready: true\\nCurrent temperatures from HAL:\\n'
printf '\\tTemperature{{mValue=%s, mType=3, mName=VIRTUAL-SKIN, mStatus=0}}\\n' "$skin"
printf '\\tTemperature{{mValue=48.0, mType=0, mName=BIG, mStatus=0}}\\n'
printf '\\tTemperature{{mValue=-99.9, mType=6, mName=PA, mStatus=0}}\\n'
printf 'Current cooling devices from HAL:\\n\\tCoolingDevice{{mValue=0, mType=2, mName=cpu}}\\n';;
esac
"""
    for name, body in programs.items():
        path = root / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}")
        path.chmod(0o755)


def main(folder: str) -> None:
    """The program: `sys.argv` as adb's."""
    sys.exit(_Program(Path(folder)).run(sys.argv[1:]))


class _Program:
    """adb for one command.

    Settings: `devices`; `qemu`, the command that runs 64-bit ARM programs; `full_after`, bytes that can be pushed before the
    device is full; `vanish_at`, the number of the command (from 1) at which the device vanishes, and `vanish_during`, whether
    it does so in the middle of it; `hang_on`, a word of a command that never answers; `corrupt`, the end of the name of a file
    that arrives changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = json.loads((folder / "control.json").read_text())

    def run(self, arguments: list[str]) -> int:
        with (self.folder / "log").open("a+") as log:
            log.write(json.dumps(arguments) + "\n")
            log.seek(0)
            number = len(log.readlines())
        vanishing = number == self.settings.get("vanish_at")
        during = vanishing and bool(self.settings.get("vanish_during"))
        if vanishing and not during:
            (self.folder / "gone").touch()
        if (word := self.settings.get("hang_on")) and any(word in argument for argument in arguments):
            time.sleep(3600)
        try:
            return self._dispatch(arguments, during)
        finally:
            if during:
                (self.folder / "gone").touch()

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
            return self._fail(f"adb: error: failed to get feature set: {trouble}" if transfers else f"error: {trouble}")
        root = self.folder / device["serial"]
        if verb == "get-state":
            print("device")
            return 0
        if verb == "push" and len(arguments) == 3:
            return self._push(root, Path(arguments[1]), arguments[2], vanishing)
        if verb == "pull" and len(arguments) == 3:
            return self._pull(root, arguments[1], Path(arguments[2]), vanishing)
        if verb == "shell" and len(arguments) > 1:
            return self._shell(root, " ".join(arguments[1:]), vanishing)
        return self._fail(f"adb: unknown command {verb}")

    @staticmethod
    def _fail(text: str) -> int:
        print(text, file=sys.stderr)
        return 1

    def _attached(self) -> list[dict[str, str]]:
        return [] if (self.folder / "gone").exists() else self.settings["devices"]

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

    def _push(self, root: Path, source: Path, target: str, vanishing: bool) -> int:
        content = source.read_bytes()
        path = Path(_to_sandbox(target, root))
        failed = f"adb: error: failed to copy '{source}' to '{target}': "
        used = self.folder / "bytes"
        before = int(used.read_text()) if used.exists() else 0
        room = self.settings.get("full_after")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if vanishing:
            path.write_bytes(content[: len(content) // 2])
            return self._fail(f"{failed}couldn't read from device")
        if room is not None and before + len(content) > room:
            return self._fail(
                f"{failed}remote write failed: No space left on device"
            )  # adbd removes what it has written
        used.write_text(str(before + len(content)))
        if (end := self.settings.get("corrupt")) and target.removesuffix(".part").endswith(end):
            content = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes(content)
        mode = stat.S_IMODE(source.stat().st_mode)
        path.chmod(mode | (mode >> 3) & 0o070 | (mode >> 6) & 0o007)  # the owner's bits are everybody's
        print(f"{source}: 1 file pushed, 0 skipped. 37.9 MB/s ({len(content)} bytes in 0.001s)")
        return 0

    def _pull(self, root: Path, source: str, target: Path, vanishing: bool) -> int:
        path = Path(_to_sandbox(source, root))
        if not path.exists():
            return self._fail(f"adb: error: failed to stat remote object '{source}': No such file or directory")
        if vanishing:
            return 1  # the real one removes what it has written, and says nothing
        shutil.copyfile(path, target)
        print(f"{source}: 1 file pulled, 0 skipped. 35.1 MB/s ({target.stat().st_size} bytes in 0.001s)")
        return 0

    def _shell(self, root: Path, command: str, vanishing: bool) -> int:
        command = self._under_qemu(_to_sandbox(command, root))
        environment = {"PATH": f"{root}/bin:/usr/bin:/bin", "HOSTNAME": "sandbox"}
        # What the client's death is to adbd, the parent's death is to this shell.
        shell = ["setpriv", "--pdeathsig", "HUP", "sh", "-c", command]
        process = subprocess.Popen(
            shell, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
        )
        if vanishing and re.search(r"^exec ", command, re.MULTILINE):
            time.sleep(0.05)
            process.kill()
        stdout, stderr = process.communicate()
        if vanishing:
            return 0  # as the real one, which reads no exit code any more
        sys.stdout.write(stdout.decode(errors="replace").replace(str(root), ""))
        sys.stderr.write(stderr.decode(errors="replace").replace(str(root), ""))
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _under_qemu(self, command: str) -> str:
        """`exec PROGRAM` of a 64-bit ARM program under qemu; without the executable bit nothing is run here either."""

        def emulated(match: re.Match[str]) -> str:
            path = Path(match[1])
            if not path.is_file() or not os.access(path, os.X_OK) or path.stat().st_mode & 0o111 == 0:
                return match[0]
            with path.open("rb") as stream:
                header = stream.read(20)
            if header[:4] != b"\x7fELF" or int.from_bytes(header[18:20], "little") != _AARCH64:
                return match[0]
            return f"exec {' '.join(self.settings['qemu'])} {match[1]}"

        return re.sub(r"^exec (\S+)", emulated, command, flags=re.MULTILINE)


def _to_sandbox(text: str, root: Path) -> str:
    return MAPPED.sub(lambda match: f"{root}{match[1]}", text)
