"""What was measured on a device."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mote_runtime.manifest import Manifest
from mote_runtime.profile.devices.facts import Facts, State, throttled
from mote_runtime.profile.record import Record
from mote_runtime.profile.settings import Settings


@dataclass(frozen=True, slots=True)
class Measurement:
    """One export measured on the device.

    `record` is of the measured repetitions; `traced` of another process, whose operators' phases and runtime's profile are in
    the files: `operators` has one for each part of the model in ONNX Runtime, and one for the whole in ExecuTorch.
    """

    manifest: Manifest
    settings: Settings
    record: Record
    traced: Record | None
    phases: Path | None
    operators: Mapping[str, Path]
    before: State
    after: State

    def to_json(self) -> dict[str, Any]:
        """How the device was before and after, and whether it was slowed down meanwhile."""
        slowed = throttled(self.before, self.after)
        return {"before": self.before.to_json(), "after": self.after.to_json(), "throttled": slowed}


@dataclass(frozen=True, slots=True)
class DeviceMeasurements:
    """What was measured on a device, one entry for each export.

    `abi` is of the program that measured. `left`: a sentence on what cleaning up could not remove, with what to do; None where
    nothing is left.
    """

    facts: Facts
    abi: str
    measurements: tuple[Measurement, ...]
    left: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The device's part of a profile's facts: which it is, and how it was around each measurement, by runtime."""
        runs = {each.manifest.target: each.to_json() for each in self.measurements}
        return self.facts.to_json() | {"runner_abi": self.abi, "runs": runs}
