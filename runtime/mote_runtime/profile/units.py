"""Figures as people read them; the same in the terminal and in the report."""

NOTHING = "–"
_BINARY = (("GiB", 30), ("MiB", 20), ("KiB", 10))


def figure(value: float | None, unit: str) -> str:
    """A value with its unit, three significant digits; a dash where there is none."""
    if value is None:
        return NOTHING
    factor, shown = _scale(value, unit)
    return f"{_digits(value / factor)} {shown}".rstrip()


def _scale(value: float, unit: str) -> tuple[float, str]:
    """The unit in which a value is shown, and its size in the unit that it has."""
    magnitude = abs(value)
    if unit == "bytes":
        return next(((float(1 << bits), name) for name, bits in _BINARY if magnitude >= 1 << bits), (1.0, "B"))
    if unit == "ms" and magnitude >= 10_000:
        return 1e3, "s"
    if unit == "ms" and 0 < magnitude < 0.1:
        return 1e-3, "µs"
    return 1.0, unit


def _digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if magnitude >= 1 or value == 0 else f"{value:.3g}"


def size(value: float) -> str:
    """Bytes in binary units."""
    return figure(value, "bytes")


def speed(value: float | None) -> str:
    """Bytes per second."""
    return NOTHING if value is None else f"{_digits(value / 1e9)} GB/s"


def share(value: float | None) -> str:
    """A share as percent."""
    return NOTHING if value is None else f"{value * 100:.0f} %" if value >= 0.095 else f"{value * 100:.1f} %"


def with_deviation(value: float, deviation: float | None, unit: str) -> str:
    """A value ± its deviation, in the same unit; a single value has none."""
    if deviation is None:
        return figure(value, unit)
    factor, shown = _scale(value, unit)
    return f"{_digits(value / factor)} ± {_digits(deviation / factor)} {shown}".rstrip()
