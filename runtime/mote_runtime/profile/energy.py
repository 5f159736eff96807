"""Energy of the processor packages, where the system lets it be read (Linux powercap, RAPL); it is never estimated."""

import re
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")  # its parts (intel-rapl:0:0) are in its count already


@dataclass(frozen=True, slots=True)
class _Counter:
    path: Path
    range_microjoules: int  # where it starts again at 0


class EnergyMeter:
    """The counters that can be read; `reason` says in a phrase why there are none, and is None if there are some."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        """`powercap` is where the system shows its counters."""
        self.reason: str | None = None
        self._counters: list[_Counter] = []
        for zone in sorted(powercap.glob("intel-rapl:*")):
            if not _PACKAGE.fullmatch(zone.name):
                continue
            try:
                if not (zone / "name").read_text().startswith("package"):
                    continue  # "psys" is the whole board, with the packages in it
                (zone / "energy_uj").read_text()
                self._counters.append(_Counter(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
            except (OSError, ValueError) as error:
                self.reason = f"{zone.name} cannot be read ({type(error).__name__})"
        if self.reason is not None:
            self._counters = []  # a part of the packages would be taken for all
        if not self._counters and self.reason is None:
            self.reason = "this system shows no energy counters"

    def read(self) -> tuple[int, ...] | None:
        """The counters in microjoules now; None where there are none."""
        return tuple(int(counter.path.read_text()) for counter in self._counters) if self._counters else None

    def joules_since(self, before: tuple[int, ...] | None) -> float | None:
        """Joules of all packages since `before`, which `read` gave; None where there are no counters."""
        after = self.read()
        if before is None or after is None:
            return None
        pairs = zip(self._counters, before, after, strict=True)
        return sum((last - first) % (counter.range_microjoules + 1) for counter, first, last in pairs) / 1e6
