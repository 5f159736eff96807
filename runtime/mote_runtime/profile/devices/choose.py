"""The device to measure on, among those that adb lists."""

import os

from mote_runtime.profile.devices.adb import Adb, AdbError, AttachedDevice, Device, plain


def choose_device(adb: Adb, serial: str | None = None) -> Device:
    """The device of this serial number (default: of ANDROID_SERIAL, or the only one); raises AdbError where it cannot be used."""
    attached = adb.devices()
    wanted = serial or os.environ.get("ANDROID_SERIAL")
    listed = ", ".join(map(str, attached))
    if wanted:
        chosen = [device for device in attached if device.serial == wanted]
        if not chosen:
            there = f"it sees {listed}" if attached else "it sees none at all"
            raise AdbError(f"adb sees no device {plain(wanted)!r}: {there}; name one that adb devices lists")
    else:
        # A device that cannot be used does not make the choice among those that can harder.
        chosen = [device for device in attached if device.state == "device"] or list(attached)
        if not chosen:
            raise AdbError(
                "adb sees no device; connect one by USB with USB debugging switched on, or with adb connect HOST:PORT, until "
                "adb devices lists it"
            )
        if len(chosen) > 1:
            raise AdbError(f"adb sees {len(chosen)} devices, {listed}; choose one with --device SERIAL")
    _check_usable(chosen[0])
    return Device(adb, chosen[0].serial)


def _check_usable(device: AttachedDevice) -> None:
    cures = {
        "unauthorized": "unlock it and accept this computer's key in the dialog that it shows",
        "authorizing": "unlock it and accept this computer's key in the dialog that it shows",
        "offline": "pull its cable and connect it again, or run adb reconnect offline",
        "no permissions": "let your user open its USB device (udev rules), or run adb kill-server and try as another user",
    }
    if device.state != "device":
        state = plain(device.state)
        cure = cures.get(device.state, "start its system as usual, until adb devices shows it as device")
        raise AdbError(f"device {device} is in the state {state!r}, not 'device'; {cure}")
