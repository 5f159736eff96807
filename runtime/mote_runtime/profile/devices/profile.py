"""From what was measured on a device to a profile: the same files as of this machine, with the device's facts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mote_runtime.profile import facts
from mote_runtime.profile.build import Circumstances, MeasuredRun, Profile, build_profile
from mote_runtime.profile.devices.facts import Core, Facts, State, throttled
from mote_runtime.profile.devices.results import DeviceMeasurements, Measurement
from mote_runtime.profile.devices.trace import read_trace


def build_device_profile(measured: DeviceMeasurements, labels: Sequence[str], command: Sequence[str]) -> Profile:
    """The profile of measurements with their labels, in order; raises ProfileError where a trace is damaged."""
    runs = [
        MeasuredRun(
            label,
            facts.model_facts(each.manifest),
            each.settings.to_json(),
            each.record,
            read_trace(each),
            each.traced,
        )
        for label, each in zip(labels, measured.measurements, strict=True)
    ]
    tools = {each.record.tool for each in measured.measurements}
    versions = {f"{each.manifest.target} on the device": each.record.runtime_version for each in measured.measurements}
    circumstances = Circumstances(
        device=_device(measured),
        versions={"mote": facts.version_facts()["mote"], "runner": ", ".join(sorted(tools)), **versions},
        command=command,
        memory_limit=None,
        no_energy="a device's counters are not read",
    )
    return build_profile(runs, circumstances)


def raw_files(measured: DeviceMeasurements) -> dict[str, Path]:
    """The raw traces pulled from the device, by the names under which they are worth keeping."""
    kept = {}
    for each in measured.measurements:
        target = each.manifest.target
        if each.phases is not None:
            kept[f"{target}-phases.bin"] = each.phases
        for part, path in each.operators.items():
            kept[f"{target}-{part}.{'json' if target == 'onnxruntime' else 'etdump'}"] = path
    return kept


def _device(measured: DeviceMeasurements) -> dict[str, Any]:
    """What a reader of the report wants to know, in words, and `states` for programs."""
    found = measured.facts
    shown: dict[str, Any] = {"kind": "device"}
    hidden = ("serial", "abis", "folder", "free_bytes")  # profiles are published; a serial number is a person's device
    shown |= {name: value for name, value in found.to_json().items() if name not in hidden}
    shown |= {"processor": _processor(found), "architecture": measured.abi}
    for each in measured.measurements:
        shown |= _words(each)
    return shown | {"states": measured.to_json()["runs"]}


def _processor(found: Facts) -> str | None:
    parts = [found.manufacturer, found.model, f"({found.soc})" if found.soc else ""]
    return " ".join(part for part in parts if part) or None


def _words(each: Measurement) -> dict[str, str]:
    target = each.manifest.target
    return {
        f"cores before {target}": _cores(each.before.cores),
        f"before {target}": _state(each.before),
        f"after {target}": _state(each.after),
        f"slowed down, {target}": throttled(each.before, each.after) or "no sign of it before and after",
    }


def _state(state: State) -> str:
    parts = []
    if state.thermal_status is not None:
        parts.append(f"thermal status {state.thermal_status}")
    if (warmest := state.warmest()) is not None:
        parts.append(f"{warmest[0]} at {warmest[1]:.1f} °C")
    if state.battery_level is not None:
        charging = {True: ", charging", False: "", None: ""}[state.charging]
        parts.append(f"battery {state.battery_level} %{charging}")
    return ", ".join(parts) or "it says nothing"


def _cores(cores: Sequence[Core]) -> str:
    """Cores of the same kind together, such as "4 up to 1800 MHz (schedutil)"."""
    kinds: Mapping[tuple[int | None, int | None, str], int] = {}
    counted = dict(kinds)
    for core in cores:
        kind = (core.greatest_khz, core.allowed_khz, core.governor)
        counted[kind] = counted.get(kind, 0) + 1
    return ", ".join(_kind(*kind, count) for kind, count in counted.items()) or "it says nothing"


def _kind(greatest: int | None, allowed: int | None, governor: str, count: int) -> str:
    speed = "of unknown speed" if greatest is None else f"up to {greatest / 1e3:.0f} MHz"
    held = (
        f", held to {allowed / 1e3:.0f} MHz"
        if allowed is not None and greatest is not None and allowed < greatest
        else ""
    )
    return f"{count} {speed}{held}{f' ({governor})' if governor else ''}"
