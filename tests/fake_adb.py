"""The test's side of a stand-in for `adb` and the devices behind it; the program itself is `fake_adb_program`.

`FakeAdb(folder)` makes the executable and a sandbox for a device, sets faults (a device that is unauthorized or full, or that
vanishes at the k-th command until `replug`), and looks at what was left.
"""

import marshal
import os
import subprocess
import sys
from pathlib import Path

SERIAL = "FA4E01"
LOADER = "/lib/ld-linux-aarch64.so.1"

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
            f"import fake_adb_program\nfake_adb_program.main({str(folder)!r})\n"
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
        """Change how it behaves; see `fake_adb_program.Program`."""
        self._settings |= settings
        (self.folder / "control").write_bytes(marshal.dumps(self._settings))

    def install(self, app: str, start: str, serial: str = SERIAL) -> None:
        """Install an app: the script `start` is what `am start` does, with the command's words as its arguments.

        It runs in the device's folder, whose `sdcard` is the shared storage; while a process whose id is in the file `app-pid` of
        that folder runs, so does the app.
        """
        root = self.folder / serial
        _write_program(root, "pm", f'[ "$*" = "path {app}" ] && echo "package:/data/app/{app}/base.apk"\n')
        _write_program(
            root, "pidof", f'read -r pid <{root}/app-pid; [ "$1" = {app} ] && kill -0 "$pid" && echo "$pid"\n'
        )
        _write_program(
            root,
            "am",
            f"""\
case $1 in
start) {start}
;;
force-stop) read -r pid <{root}/app-pid && kill -9 "$pid";;
esac
""",
        )

    def replug(self) -> None:
        """A device that vanished is there again, with what was on it; nothing vanishes any more; count and log are new."""
        self.control(vanish_at=0)
        for name in ("gone", "log"):
            (self.folder / name).unlink(missing_ok=True)

    def log(self) -> list[list[str]]:
        """The commands since the beginning or `replug`."""
        path = self.folder / "log"
        return marshal.loads(path.read_bytes()) if path.exists() else []

    def pushed(self) -> list[str]:
        """Names of the files pushed, as the device has them."""
        return [command[-1].rsplit("/", 1)[-1].removesuffix(".part") for command in self.log() if "push" in command]

    def left(self, serial: str = SERIAL) -> list[str]:
        """Every path that lies in the device's folders for programs."""
        root = self.folder / serial
        bases = [base for base in (root / "data/local/tmp", root / "var/tmp", root / "sdcard") if base.exists()]
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
        programs["pm"] = "exit 1\n"
    for name, body in programs.items():
        _write_program(root, name, body)


def _write_program(root: Path, name: str, body: str) -> None:
    path = root / "bin" / name
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)
