"""What a device says of itself: which one it is, and how hot, how fast and how charged it is right now.

A device is not to be trusted: what it says is cut to length, ranges are checked, and what makes no sense is left out.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mote_runtime.profile.devices.adb import AdbError, Device, plain

# Where a program may be put and run: on Android the shell user's folder, on a Linux board what is not memory first.
WORKING_FOLDERS = ("/data/local/tmp", "/var/tmp", "/tmp")

MAX_CORES = 1024
MAX_SENSORS = 256
_MAX_LINES = 5000
_MAX_KHZ = 100_000_000
_COOLEST, _HOTTEST = 0.0, 150.0  # degrees Celsius that a sensor in use can show

_PROPERTIES = (
    "ro.product.manufacturer",
    "ro.product.model",
    "ro.soc.manufacturer",
    "ro.soc.model",
    "ro.hardware",
    "ro.build.version.release",
    "ro.build.version.sdk",
    "ro.product.cpu.abilist",
)

# Each line is a key, a tab and a value. `f` reads the first line of a file without starting a process.
_PRELUDE = """\
p() { printf '%s\\t%s\\n' "$1" "$2"; }
f() { v=; { read -r v <"$1"; } 2>/dev/null; }
"""
_STATE_SCRIPT = """\
for c in /sys/devices/system/cpu/cpu[0-9]*; do
n=${c##*cpu}
for k in cpuinfo_max_freq scaling_max_freq scaling_cur_freq scaling_governor; do f $c/cpufreq/$k; p "core $n $k" "$v"; done
done
for z in /sys/class/thermal/thermal_zone*; do f $z/type; t=$v; f $z/temp; p "zone $t" "$v"; done
dumpsys thermalservice 2>/dev/null | head -n 300 | sed 's/^[[:space:]]*/thermal\t/'
dumpsys battery 2>/dev/null | head -n 100 | sed 's/^[[:space:]]*/battery\t/'
"""
_FACTS_SCRIPT = (
    "".join(f'p {name} "$(getprop {name} 2>/dev/null)"\n' for name in _PROPERTIES)
    + """\
p uname "$(uname -s)"
p machine "$(uname -m)"
p release "$(uname -r)"
f /sys/firmware/devicetree/base/model; p board "$v"
while read -r k v u; do case $k in MemTotal:|MemAvailable:) p $k "$v";; esac; done </proc/meminfo
"""
    + f"for d in {' '.join(WORKING_FOLDERS)}; do\n"
    + """\
if [ -d $d ] && [ -w $d ]; then p folder $d; df -k -P $d | tail -n 1 | while read -r l; do p df "$l"; done; break; fi
done
"""
)

# What `uname -m` says where there is no Android, and the folder's name for it.
_LINUX_ABIS = {"x86_64": "linux-x86_64", "aarch64": "linux-aarch64", "arm64": "linux-aarch64"}

_KEYS = re.compile(r"core (\d{1,4}) (\w+)")
_STATUS = re.compile(r"Thermal Status: (\d)")
_TEMPERATURE = re.compile(r"Temperature\{mValue=(-?\d+(?:\.\d+)?), mType=(-?\d+), mName=([^,}]*)")
_SKIN_TYPE = "3"


@dataclass(frozen=True, slots=True)
class Core:
    """A core's clock in kHz, None where it is not told: the fastest it has, how fast it may be now, how fast it is now."""

    number: int
    greatest_khz: int | None
    allowed_khz: int | None
    current_khz: int | None
    governor: str


@dataclass(frozen=True, slots=True)
class State:
    """How the device is at one moment.

    `thermal_status` is Android's, from 0 (none) to 6 (shutdown), None where it is not told; `temperatures` are degrees
    Celsius by sensor, `battery_level` percent.
    """

    thermal_status: int | None
    temperatures: Mapping[str, float]
    cores: tuple[Core, ...]
    battery_level: int | None
    charging: bool | None

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self) | {"temperatures": dict(self.temperatures), "cores": [asdict(core) for core in self.cores]}

    def warmest(self) -> tuple[str, float] | None:
        """The sensor that says how warm the device is as a whole, and its degrees Celsius; None where none is read.

        It is the skin's, or the battery's, or else the hottest zone, which on a board is mostly the processor's.
        """
        for group in ("skin", "batt"):
            found = {name: degrees for name, degrees in self.temperatures.items() if group in name.lower()}
            if found:
                break
        else:
            found = dict(self.temperatures)
        return max(found.items(), key=lambda item: item[1]) if found else None


@dataclass(frozen=True, slots=True)
class Facts:
    """What stays the same during a profile. `abis` are the names of folders with runners, the best first."""

    serial: str
    system: str
    manufacturer: str
    model: str
    soc: str
    hardware: str
    abis: tuple[str, ...]
    memory_bytes: int | None
    available_memory_bytes: int | None
    folder: str
    free_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self) | {"abis": list(self.abis)}


def read_facts(device: Device) -> tuple[Facts, State]:
    """Ask the device for everything at once; raises AdbError."""
    lines = _lines(device.ask(_PRELUDE + _FACTS_SCRIPT + _STATE_SCRIPT, "reading its facts"))
    return _parse_facts(device, lines), parse_state(lines)


def read_state(device: Device) -> State:
    """Ask the device how it is now; raises AdbError."""
    return parse_state(_lines(device.ask(_PRELUDE + _STATE_SCRIPT, "reading temperatures and frequencies")))


def _lines(text: str) -> list[tuple[str, str]]:
    pairs = (line.partition("\t") for line in text.splitlines()[:_MAX_LINES])
    return [(key.strip(), plain(value, 200)) for key, tab, value in pairs if tab]


def _parse_facts(device: Device, lines: Iterable[tuple[str, str]]) -> Facts:
    said = {key: value for key, value in lines if value}
    android = said.get("ro.build.version.release")
    if android:
        system = f"Android {android} (API {said.get('ro.build.version.sdk', '?')})"
        abis = tuple(
            abi for abi in said.get("ro.product.cpu.abilist", "").split(",") if re.fullmatch(r"[\w-]{1,40}", abi)
        )
    else:
        system = f"{said.get('uname', 'unknown system')} {said.get('release', '')}".strip()
        machine = said.get("machine", "unknown")
        abis = (_LINUX_ABIS.get(machine, f"linux-{machine}"),) if re.fullmatch(r"[\w-]{1,40}", machine) else ()
    folder = said.get("folder", "")
    if folder not in WORKING_FOLDERS:
        raise AdbError(
            f"device {plain(device.serial)} has no folder to work in: none of {', '.join(WORKING_FOLDERS)} is there and can "
            "be written to"
        )
    return Facts(
        serial=plain(device.serial),
        system=system,
        manufacturer=said.get("ro.product.manufacturer", ""),
        model=said.get("ro.product.model") or said.get("board", "").rstrip("\0"),
        soc=f"{said.get('ro.soc.manufacturer', '')} {said.get('ro.soc.model', '')}".strip(),
        hardware=said.get("ro.hardware") or said.get("machine", ""),
        abis=abis,
        memory_bytes=_kibibytes(said.get("MemTotal:")),
        available_memory_bytes=_kibibytes(said.get("MemAvailable:")),
        folder=folder,
        free_bytes=_free_bytes(device, said.get("df", "")),
    )


def _free_bytes(device: Device, df: str) -> int:
    """From a line of `df -k -P`: the fourth of its six columns; the first, a device's name, may hold spaces."""
    columns = df.split()
    free = _integer(columns[-3], 1 << 50) if len(columns) >= 6 else None
    if free is None:
        raise AdbError(
            f"device {plain(device.serial)} does not tell its free space: df said {plain(df)!r}; expected six columns"
        )
    return free << 10


def _kibibytes(text: str | None) -> int | None:
    number = _integer(text or "", 1 << 50)
    return None if number is None else number << 10


def _integer(text: str, greatest: int) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) and int(text) <= greatest else None


def parse_state(lines: Iterable[tuple[str, str]]) -> State:
    """The state from keys and values as the script prints them; what makes no sense is left out."""
    cores: dict[int, dict[str, str]] = {}
    zones: list[tuple[str, str]] = []
    thermal: list[str] = []
    battery: dict[str, str] = {}
    for key, value in lines:
        kind = key.split(" ", 1)[0]
        if (core := _KEYS.fullmatch(key)) and len(cores) < MAX_CORES:
            cores.setdefault(int(core[1]), {})[core[2]] = value
        elif kind == "zone" and len(zones) < MAX_SENSORS:
            zones.append((plain(key.removeprefix("zone").strip(), 60), value))
        elif kind == "thermal":
            thermal.append(value)
        elif kind == "battery":
            name, _, content = value.partition(":")
            battery.setdefault(name.strip().lower(), content.strip())
    status = next((int(found[1]) for line in thermal if (found := _STATUS.match(line))), None)
    return State(
        thermal_status=status,
        temperatures=_temperatures(thermal, battery, zones),
        cores=tuple(_core(number, cores[number]) for number in sorted(cores)),
        battery_level=_integer(battery.get("level", ""), 100),
        charging=_charging(battery),
    )


def _core(number: int, said: Mapping[str, str]) -> Core:
    greatest, allowed, current = (
        _integer(said.get(key, ""), _MAX_KHZ) for key in ("cpuinfo_max_freq", "scaling_max_freq", "scaling_cur_freq")
    )
    return Core(number, greatest, allowed, current, plain(said.get("scaling_governor", ""), 60))


def _temperatures(thermal: list[str], battery: Mapping[str, str], zones: Iterable[tuple[str, str]]) -> dict[str, float]:
    """By sensor, from the best source there is: Android's thermal service, the battery, the kernel's zones."""
    # Those of the hardware are of now; the cached ones before them may be hours old.
    current = thermal[_index(thermal, "Current temperatures from HAL") :]
    found: dict[str, float] = {}
    for line in current:
        if line.startswith("Current cooling devices"):
            break
        if match := _TEMPERATURE.match(line):
            name = plain(match[3], 60)
            if match[2] == _SKIN_TYPE and not re.search("skin|batt", name, re.IGNORECASE):
                name += " (skin)"
            _keep(found, name, float(match[1]))
    tenths = _integer(battery.get("temperature", ""), 10_000)
    if tenths is not None and not any("batt" in name.lower() for name in found):
        _keep(found, "battery", tenths / 10)
    if not found:
        for name, value in zones:
            number = _integer(value, 10_000_000)
            if number is not None:  # mostly thousandths of a degree
                _keep(found, name or "zone", number / 1000 if number >= 1000 else float(number))
    return found


def _index(lines: list[str], start: str) -> int:
    return next((index for index, line in enumerate(lines) if line.startswith(start)), 0)


def _keep(found: dict[str, float], name: str, degrees: float) -> None:
    """Of sensors with the same name the hottest; a sensor that is not there shows 0, -99.9 or the like."""
    if _COOLEST < degrees < _HOTTEST and (name in found or len(found) < MAX_SENSORS):
        found[name] = max(degrees, found.get(name, degrees))


def _charging(battery: Mapping[str, str]) -> bool | None:
    powered = [value for name, value in battery.items() if name.endswith("powered")]
    return any(value == "true" for value in powered) if powered else None


def throttled(before: State, after: State) -> str | None:
    """Why the device was not at its full speed at the end of a measurement that began at `before`; None where it was.

    It is looked at before and after only; a short slowdown between the two goes unseen.
    """
    reasons = []
    if after.thermal_status:
        reasons.append(f"its thermal status rose to {after.thermal_status}")
    allowed_before = {core.number: core.allowed_khz for core in before.cores}
    lowered = [
        core
        for core in after.cores
        if core.allowed_khz is not None and core.allowed_khz < (allowed_before.get(core.number) or 0)
    ]
    if lowered:
        core = max(lowered, key=lambda each: allowed_before[each.number] or 0)
        reasons.append(
            f"{len(lowered)} cores were held down, core {core.number} from {(allowed_before[core.number] or 0) / 1e3:.0f} "
            f"to {(core.allowed_khz or 0) / 1e3:.0f} MHz"
        )
    return " and ".join(reasons) or None
