"""What the runtimes' own profilers recorded, in one form: runs of a part of the model, with the operators inside."""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any


class Part(Enum):
    """A part of the model; its runs are the runtimes' unit of profiling."""

    VISION = "vision"
    EMBEDDING = "embedding"
    DECODER = "decoder"
    OTHER = "other"


@dataclass(slots=True)
class Span:
    """An interval in ns with a name of the vocabulary; children lie inside, one after the other, once `timeline` is done.

    `category` is "stage", "op" or "phase". `weight_bytes`: stored weights and scales read; None where that is not known.
    """

    name: str
    category: str
    begin_ns: int
    end_ns: int
    weight_bytes: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    children: list["Span"] = field(default_factory=list)

    @property
    def duration_ns(self) -> int:
        """Its length."""
        return self.end_ns - self.begin_ns

    def copy(self) -> "Span":
        """An equal one that shares nothing with it."""
        children = [child.copy() for child in self.children]
        return replace(self, arguments=dict(self.arguments), children=children)

    def shift(self, offset_ns: int) -> None:
        """Move it, with its children, to another clock."""
        self.begin_ns += offset_ns
        self.end_ns += offset_ns
        for child in self.children:
            child.shift(offset_ns)


@dataclass(slots=True)
class Run:
    """One run of a part of the model on the profiler's own clock, in ns, with its operators in order of time."""

    part: Part
    begin_ns: int
    end_ns: int
    operators: list[Span]

    def copy(self) -> "Run":
        """An equal one that shares nothing with it."""
        return replace(self, operators=[span.copy() for span in self.operators])

    def shift(self, offset_ns: int) -> None:
        """Move it, with its operators, to another clock."""
        self.begin_ns += offset_ns
        self.end_ns += offset_ns
        for span in self.operators:
            span.shift(offset_ns)
