"""Two records side by side: the ratio of each measure, and whether a difference is shown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mote_runtime.profile.measures import MEASURES, Measure
from mote_runtime.profile.record import Record
from mote_runtime.profile.statistics import Difference, Verdict, compare
from mote_runtime.profile.strict import ProfileError


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of both."""

    measure: Measure
    difference: Difference

    @property
    def verdict(self) -> Verdict:
        """What B is, where a difference is shown."""
        if not self.difference.shown or self.difference.ratio is None:
            return "no difference shown"
        increased = self.difference.ratio > 1
        if self.measure.unit in ("bytes", "J"):
            return "more" if increased else "less"
        return "faster" if increased == (self.measure.better == "more") else "slower"

    @property
    def slower_by(self) -> float:
        """By how many percent B is slower where that is shown, else 0: of time for times, of speed for speeds."""
        ratio = self.difference.ratio
        if self.verdict != "slower" or ratio is None:
            return 0.0
        return (1 - ratio if self.measure.better == "more" else ratio - 1) * 100

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        difference = asdict(self.difference)
        return {
            "key": self.measure.key,
            "title": self.measure.title,
            "unit": self.measure.unit,
            **difference,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """`a` and `b` are what the records are called."""

    a: str
    b: str
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {"a": self.a, "b": self.b, "rows": [row.to_json() for row in self.rows]}


def compare_records(names: tuple[str, str], a: Record, b: Record) -> Comparison:
    """All measures that both have; raises ProfileError where they have none in common."""
    rows = []
    for measure in MEASURES:
        first, second = measure.values(a), measure.values(b)
        if first and second:
            rows.append(Row(measure, compare(first, second)))
    if not any(row.measure.key == "time_to_first_token_ms" for row in rows):
        raise ProfileError(
            f"{names[0]} and {names[1]} have no answers to compare; profile both with at least one repetition"
        )
    return Comparison(*names, tuple(rows))


def slower(comparisons: Sequence[Comparison], percent: float) -> str | None:
    """A phrase for what is shown to be slower by more than `percent`; None where nothing is."""
    found = [
        f"{row.measure.title} by {row.slower_by:.1f} % ({comparison.b})"
        for comparison in comparisons
        for row in comparison.rows
        if row.slower_by > percent
    ]
    return ", ".join(found) or None
