"""`mote-profile DIR --device`: the options, and the branch of the program that measures over adb."""

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mote_runtime.profile import host
from mote_runtime.profile.build import Profile
from mote_runtime.profile.devices.adb import AdbError
from mote_runtime.profile.devices.app import DEFAULT_APP, measure_in_app
from mote_runtime.profile.devices.measure import measure_on_device
from mote_runtime.profile.devices.options import COOL_BELOW, COOL_BELOW_ZONE, DeviceOptions
from mote_runtime.profile.devices.profile import build_device_profile, raw_files
from mote_runtime.profile.devices.results import DeviceMeasurements
from mote_runtime.profile.settings import Settings

_DEFAULTS = DeviceOptions()
_OPTIONS = (
    "adb",
    "app",
    "runner",
    "no_wait_cool",
    "cool_below",
    "cool_timeout",
    "device_timeout",
    "no_cleanup",
    "keep_trace",
)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """The group of options for a device; `check_device_options` looks at them together."""
    group = parser.add_argument_group("on a device (docs/device.md)")
    group.add_argument(
        "--device",
        nargs="?",
        const="",
        metavar="SERIAL",
        help="measure on a phone or board that adb reaches; SERIAL if there are several",
    )
    group.add_argument("--adb", metavar="PATH", help="the adb program; default: ADB of the environment, or on the PATH")
    group.add_argument(
        "--app",
        nargs="?",
        const=DEFAULT_APP,
        metavar="NAME",
        help=f"measure inside an app, by its benchmark intent and without a trace; default: {DEFAULT_APP}",
    )
    group.add_argument(
        "--runner", metavar="DIR", help="the folder of mote-runner for it, or one with a folder for each ABI"
    )
    group.add_argument("--no-wait-cool", action="store_true", help="measure however warm it is")
    group.add_argument(
        "--cool-below",
        type=_seconds,
        metavar="C",
        help=f"wait until it is cooler; default: skin or battery {COOL_BELOW:g} °C, a board's hottest zone {COOL_BELOW_ZONE:g} °C",
    )
    group.add_argument(
        "--cool-timeout",
        type=_seconds,
        metavar="S",
        help=f"wait at most so long; default: {_DEFAULTS.cool_timeout_s:g} s",
    )
    group.add_argument(
        "--device-timeout",
        type=_seconds,
        metavar="S",
        help=f"for a run of the runner; default: {_DEFAULTS.run_timeout_s:g} s",
    )
    group.add_argument(
        "--no-cleanup", action="store_true", help="leave model and runner there; they are found again by their SHA-256"
    )
    group.add_argument("--keep-trace", action="store_true", help="keep the raw traces too, in OUT/traces")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1000000")
    return value


def check_device_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program with 2 where options of a device are given without one, or with what needs none."""
    if arguments.device is not None:
        if arguments.compare is not None:
            parser.error("--device takes one folder; profile both on the device and compare the profiles")
        if arguments.app is not None:
            _refuse(parser, arguments, ("runner", "keep_trace", "cores"), "is of no use with --app")
        return
    _refuse(parser, arguments, _OPTIONS, "is of use with --device only")


def _refuse(parser: argparse.ArgumentParser, arguments: argparse.Namespace, names: Sequence[str], because: str) -> None:
    for name in names:
        if getattr(arguments, name) not in (None, False):
            parser.error(f"--{name.replace('_', '-')} {because}")


@contextlib.contextmanager
def profile_on_device(
    arguments: argparse.Namespace, subjects: Sequence[host.Subject], command: Sequence[str]
) -> Iterator[tuple[Profile, Mapping[str, Path]]]:
    """The profile and the raw traces to keep, by name, for as long as the block runs.

    Raises MoteError; after the block also where the device could not be cleaned, so that what was measured is not lost by it.
    """
    with tempfile.TemporaryDirectory(prefix="mote-profile-") as scratch:
        with host.progress(quiet=arguments.quiet) as progress:
            settings = [subject.settings for subject in subjects]
            measured = _measure(settings, arguments, Path(scratch), progress)
            profile = build_device_profile(measured, [subject.label for subject in subjects], command)
        yield profile, raw_files(measured) if arguments.keep_trace else {}
    if measured.left:
        raise AdbError(measured.left)


def _measure(
    settings: Sequence[Settings], arguments: argparse.Namespace, scratch: Path, say: Callable[[str], None]
) -> DeviceMeasurements:
    options = _options(arguments)
    if arguments.app is None:
        return measure_on_device(settings, options, scratch, say)
    measured = [replace(each, trace_sources=(), loads=1) for each in settings]
    return measure_in_app(measured, options, arguments.app, scratch, say)


def _options(arguments: argparse.Namespace) -> DeviceOptions:
    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    return DeviceOptions(
        adb=arguments.adb,
        serial=arguments.device or None,
        runner=arguments.runner,
        wait_cool=not arguments.no_wait_cool,
        cool_below=arguments.cool_below,
        cool_timeout_s=given(arguments.cool_timeout, _DEFAULTS.cool_timeout_s),
        run_timeout_s=given(arguments.device_timeout, _DEFAULTS.run_timeout_s),
        cleanup=not arguments.no_cleanup,
    )
