"""Brings clocks together: a profiler's clock is shifted so that everything lies inside what was seen to hold it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mote_runtime.profile.strict import ProfileError
from mote_runtime.profile.trace.events import Run
from mote_runtime.profile.trace.raw_trace import Call

# Profilers count whole microseconds, so an inner interval may seem to stick out by one.
TOLERANCE_NS = 2_000


@dataclass(frozen=True, slots=True)
class Alignment:
    """The shift in ns that was chosen, and how far it could be wrong: half the width of what would fit."""

    offset_ns: int
    uncertainty_ns: int


def match_runs(runs: Sequence[Run], calls: Sequence[Call]) -> list[tuple[list[Run], Call]]:
    """The runs that each call made; `runs` on one clock in order of time, `calls` in order, of the same parts.

    A call may be several runs (a long prompt in pieces), and calls of one part never follow one another where another part is
    on the same clock. Raises ProfileError where they do not fit.
    """
    parts = {run.part for run in runs}
    calls = [call for call in calls if call.part in parts]
    if len(parts) == 1:
        groups = [[run] for run in runs]
    else:
        groups = [list(group) for _, group in itertools.groupby(runs, key=lambda run: run.part)]
    if len(groups) != len(calls) or any(
        group[0].part is not call.part for group, call in zip(groups, calls, strict=True)
    ):
        raise ProfileError(
            f"the runtime's profile holds {len(groups)} runs, but the model was called {len(calls)} times; trace it again"
        )
    return list(zip(groups, calls, strict=True))


Interval = tuple[int, int]
Bounds = tuple[int, int]  # the least and the greatest shift that would do


def inside(inner: Interval, outer: Interval) -> Bounds:
    """Shifts of `inner` that bring it into `outer`; both (begin, end) in ns."""
    return outer[0] - inner[0], outer[1] - inner[1]


def around(outer: Interval, inner: Interval) -> Bounds:
    """Shifts of `outer` that bring it around `inner`; both (begin, end) in ns."""
    return inner[1] - outer[1], inner[0] - outer[0]


def align(bounds: Sequence[Bounds]) -> Alignment:
    """The shift that satisfies all bounds, in the middle of those that do.

    Raises ProfileError where none does within the resolution of the clocks.
    """
    if not bounds:
        return Alignment(0, 0)
    low, high = max(low for low, _ in bounds), min(high for _, high in bounds)
    if low > high + TOLERANCE_NS:
        raise ProfileError(
            f"the clocks of a trace cannot be brought together: they are {(low - high) / 1e3:.1f} µs apart; trace it again"
        )
    return Alignment((low + high) // 2, max(0, high - low) // 2)
