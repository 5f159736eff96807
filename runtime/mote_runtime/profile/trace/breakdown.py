"""Sums over a timeline: where the time of each stage went, what was read, and how near to the limit of memory that came."""

import bisect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mote_runtime.profile.trace import vocabulary
from mote_runtime.profile.trace.events import Span
from mote_runtime.profile.trace.timeline import Timeline, walk

STAGES = (vocabulary.IMAGE_ENCODE, vocabulary.EMBED, vocabulary.PREFILL, vocabulary.DECODE)


@dataclass(slots=True)
class _Sum:
    count: int = 0
    ns: int = 0
    weight_bytes: int | None = 0
    layers: dict[int, int] = field(default_factory=dict)

    def add(self, ns: int, weight_bytes: int | None) -> None:
        self.count += 1
        self.ns += ns
        # One part that is not known makes the sum unknown.
        self.weight_bytes = (
            None if self.weight_bytes is None or weight_bytes is None else self.weight_bytes + weight_bytes
        )


def breakdown(timeline: Timeline, light: Timeline | None, limit_bytes_per_sec: float | None) -> dict[str, Any]:
    """By stage: its time, its operators from the greatest on, and the phases of ours; times in ms.

    An operator's time is its own: that of a delegate's operators is theirs, the rest of the delegate is `(inside NAME)`. The rest
    of a stage is the runtime's and Python's. Phases are sums over threads, so they may exceed their operator's time;
    they are those of `light`, where the runtime's profiler did not slow them down, if there is one.
    """
    stages: dict[str, Any] = {}
    phases = _phase_sums(light or timeline)
    for name, group in _stage_groups(timeline, vocabulary.ANSWER).items():
        total = sum(span.duration_ns for span in group)
        sums: dict[str, _Sum] = defaultdict(_Sum)
        for stage in group:
            for operator, ns, weight_bytes in _own_times(stage):
                sums[operator].add(ns, weight_bytes)
        operators = [
            {"name": operator, **_figures(each, limit_bytes_per_sec), "share": _ratio(each.ns, total)}
            for operator, each in sorted(sums.items(), key=lambda item: -item[1].ns)
        ]
        rest = total - sum(each.ns for each in sums.values())
        stages[name] = {
            "count": len(group),
            "ms": round(total / 1e6, 4),
            "outside_operators_ms": round(rest / 1e6, 4),
            "operators": operators,
            "phases": [
                {"name": phase, "expert": expert, **_figures(each, limit_bytes_per_sec)}
                for (phase, expert), each in sorted(phases.get(name, {}).items(), key=lambda item: -item[1].ns)
            ],
        }
    return stages


def _figures(each: _Sum, limit: float | None) -> dict[str, Any]:
    speed = each.weight_bytes / (each.ns / 1e9) if each.weight_bytes and each.ns else None
    return {
        "count": each.count,
        "ms": round(each.ns / 1e6, 4),
        "weight_bytes": each.weight_bytes,
        "bytes_per_sec": None if speed is None else round(speed),
        "share_of_memory_limit": None if speed is None or not limit else round(speed / limit, 4),
    }


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def stage_of(span: Span) -> str | None:
    """The name under which a stage is summed up; None for one that is not."""
    if span.name.startswith(vocabulary.DECODE):
        return vocabulary.DECODE
    return span.name if span.name in STAGES else None


def _stage_groups(timeline: Timeline, name_of_answer: str) -> dict[str, list[Span]]:
    answers = [span for span in timeline.stages if span.name == name_of_answer]
    answer = answers[0] if answers else (timeline.stages[-1] if timeline.stages else None)
    groups: dict[str, list[Span]] = defaultdict(list)
    for span in answer.children if answer else []:
        if name := stage_of(span):
            groups[name].append(span)
    return dict(sorted(groups.items(), key=lambda item: STAGES.index(item[0])))


def _own_times(stage: Span) -> Iterator[tuple[str, int, int | None]]:
    """(name, own ns, weight bytes) of each operator below a stage."""
    for span, _ in walk(stage.children):
        if span.category != "op":
            continue
        inner = [child for child in span.children if child.category == "op"]
        if inner:
            yield (
                f"(inside {span.name})",
                span.duration_ns - sum(child.duration_ns for child in inner),
                span.weight_bytes,
            )
        else:
            yield span.name, span.duration_ns, span.weight_bytes


def _phase_sums(timeline: Timeline) -> dict[str, dict[tuple[str, str], _Sum]]:
    """By stage, and by (phase, "routed", "shared" or "")."""
    groups = _stage_groups(timeline, vocabulary.PHASES_ANSWER)
    intervals = sorted((span.begin_ns, span.end_ns, name) for name, group in groups.items() for span in group)
    begins = [begin for begin, _, _ in intervals]
    sums: dict[str, dict[tuple[str, str], _Sum]] = defaultdict(lambda: defaultdict(_Sum))
    on_main = [
        span for stages in groups.values() for stage in stages for span, _ in walk([stage]) if span.category == "phase"
    ]
    for span in [*on_main, *(span for track in timeline.workers.values() for span in track)]:
        index = bisect.bisect_right(begins, span.begin_ns) - 1
        if index < 0 or span.begin_ns > intervals[index][1]:
            continue
        stage = intervals[index][2]
        expert = span.arguments.get("expert")
        kind = "" if expert is None else "shared" if expert == "shared" else "routed"
        sums[stage][span.name.split(" ", 1)[0], kind].add(span.duration_ns, span.weight_bytes)
    return sums


def expert_load(timeline: Timeline) -> dict[str, Any]:
    """Tokens of each expert by layer, for the traced answer."""
    tokens = sum(timeline.expert_tokens[0]) if timeline.expert_tokens else 0
    return {"layers": timeline.layers, "tokens": timeline.expert_tokens, "choices_per_layer": tokens}
