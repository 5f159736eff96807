"""Everything that was recorded while one repetition was traced, before it is laid on one clock.

It may come from a worker of mote-profile or from a device, where nobody watched the calls from outside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mote_runtime.profile.trace.events import Part, Run
from mote_runtime.profile.trace.inner import EVENT, EventArray


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a part of the model, seen from outside: CLOCK_MONOTONIC ns, and how many tokens (or pictures) it took."""

    part: Part
    begin_ns: int
    end_ns: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Marks:
    """When things happened in the process, in CLOCK_MONOTONIC ns: loading, and the traced answer."""

    load_begin_ns: int
    load_end_ns: int
    answer_begin_ns: int
    tokenized_ns: int
    answer_end_ns: int


@dataclass(frozen=True, slots=True)
class RawTrace:
    """The parts of a trace.

    Attributes:
        runs: what the runtime's profiler recorded, by clock: a name, and the runs on that clock.
        calls: every call of the process, in order, also those before the traced answer; empty where nobody watched. Then `runs`
            and `phases` are of the same answer and nothing else.
        marks: None where `calls` is empty.
        phases: records of the operators, with `phase_names` for their field `phase`; `dropped` did not fit.
        moe_layers: the decoder's layers that hold experts, in order.
    """

    runs: Mapping[str, Sequence[Run]]
    calls: Sequence[Call]
    marks: Marks | None
    moe_layers: Sequence[int]
    num_experts: int
    phases: EventArray = field(default_factory=lambda: np.zeros(0, EVENT))
    phase_names: Sequence[str] = ()
    dropped: int = 0
