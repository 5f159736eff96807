"""What the command line says of a device."""

from dataclasses import dataclass

# A phone is warm to the hand above the first; a board's hottest zone is its processor, which is warmer inside.
COOL_BELOW, COOL_BELOW_ZONE = 38.0, 60.0


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """What the command line says of the device.

    Attributes:
        adb, serial, runner: None where the default is to be found: the program, the only device, the runner's folder.
        wait_cool: wait until the device is below `cool_below` degrees Celsius (None: by the sensor), at most `cool_timeout_s`.
        run_timeout_s: the longest that one run of the runner may take.
        cleanup: remove models and runner from the device at the end; the files of the run itself go in any case.
    """

    adb: str | None = None
    serial: str | None = None
    runner: str | None = None
    wait_cool: bool = True
    cool_below: float | None = None
    cool_timeout_s: float = 900.0
    run_timeout_s: float = 1800.0
    cleanup: bool = True
