"""Waits until a device is cool, so that a measurement does not meet a processor that its system holds back."""

import time
from collections.abc import Callable

from mote_runtime.errors import MoteError
from mote_runtime.profile.devices.adb import Device, plain
from mote_runtime.profile.devices.facts import State, read_state
from mote_runtime.profile.devices.options import COOL_BELOW, COOL_BELOW_ZONE, DeviceOptions

COOL_INTERVAL_S = 5.0


def wait_until_cool(device: Device, options: DeviceOptions, say: Callable[[str], None]) -> State:
    """How the device is once it is cool enough, or at once where nobody asked to wait; raises MoteError where it stays warm."""
    deadline = time.monotonic() + options.cool_timeout_s
    while True:
        state = read_state(device)
        warm = _too_warm(state, options.cool_below) if options.wait_cool else None
        if warm is None:
            return state
        if time.monotonic() >= deadline:
            raise MoteError(
                f"device {plain(device.serial)} did not cool down within {options.cool_timeout_s:.0f} s: {warm}; let "
                "it rest, raise --cool-below, or measure as it is with --no-wait-cool"
            )
        say(f"waiting until {plain(device.serial)} is cool: {warm}")
        time.sleep(min(COOL_INTERVAL_S, max(deadline - time.monotonic(), 0.01)))


def _too_warm(state: State, below: float | None) -> str | None:
    """Why the device should rest first; None where it need not, or says nothing of its temperature."""
    if state.thermal_status:
        return f"its thermal status is {state.thermal_status}; expected 0"
    warmest = state.warmest()
    if warmest is None:
        return None
    name, degrees = warmest
    surface = any(word in name.lower() for word in ("skin", "batt"))
    bound = below if below is not None else COOL_BELOW if surface else COOL_BELOW_ZONE
    return f"{name} is at {degrees:.1f} °C; expected below {bound:g} °C" if degrees >= bound else None
