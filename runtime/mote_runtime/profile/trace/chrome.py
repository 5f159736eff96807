"""Writes timelines as one trace in the format of Chrome, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Each runtime is a process whose loading starts at 0, so that two lie side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mote_runtime.profile.record import Record
from mote_runtime.profile.trace.events import Span
from mote_runtime.profile.trace.timeline import Timeline, walk

MAIN_THREAD = 1


@dataclass(frozen=True, slots=True)
class TracedRun:
    """A timeline and the record of the same process, whose memory and tokens become counters."""

    label: str
    timeline: Timeline
    record: Record | None


def chrome_trace(runs: Sequence[TracedRun]) -> dict[str, Any]:
    """The document: times in microseconds, spans as complete events ("X"), memory and tokens as counters ("C")."""
    events: list[dict[str, Any]] = []
    for process, run in enumerate(runs, 1):
        events += _names(process, run)
        zero = min((span.begin_ns for span in run.timeline.stages), default=0)
        for span, _ in walk(run.timeline.stages):
            events.append(_complete(span, process, MAIN_THREAD, zero))
        for number, spans in run.timeline.workers.items():
            events += [_complete(span, process, MAIN_THREAD + number, zero) for span in spans]
        events += _counters(run, process, zero)
    clocks = {
        run.label: {
            clock: {"offset_ns": each.offset_ns, "uncertainty_ns": each.uncertainty_ns}
            for clock, each in run.timeline.alignments.items()
        }
        for run in runs
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"clocks": clocks}}


def _names(process: int, run: TracedRun) -> Iterator[dict[str, Any]]:
    def name(kind: str, thread: int, text: str) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": text}}

    yield name("process_name", 0, run.label)
    yield name("thread_name", MAIN_THREAD, "main")
    for number in run.timeline.workers:
        yield name("thread_name", MAIN_THREAD + number, f"worker {number}")


def _complete(span: Span, process: int, thread: int, zero: int) -> dict[str, Any]:
    arguments = dict(span.arguments)
    if span.weight_bytes is not None and span.category != "stage":
        arguments["weight_bytes"] = span.weight_bytes
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.category,
        "pid": process,
        "tid": thread,
        "ts": (span.begin_ns - zero) / 1e3,
        "dur": span.duration_ns / 1e3,
        "args": arguments,
    }


def _counters(run: TracedRun, process: int, zero: int) -> Iterator[dict[str, Any]]:
    record = run.record
    if record is None or record.monotonic_to_epoch_ms is None:
        return

    def counter(name: str, when_ms: float, values: dict[str, int]) -> dict[str, Any]:
        assert record is not None
        assert record.monotonic_to_epoch_ms is not None
        when_us = (when_ms - record.monotonic_to_epoch_ms) * 1e3 - zero / 1e3
        return {"ph": "C", "name": name, "pid": process, "tid": 0, "ts": round(when_us, 3), "args": values}

    for when, anonymous, file in record.memory.samples:
        yield counter("memory", when, {"anonymous": anonymous, "file": file})
    for repetition in record.repetitions:
        yield counter("tokens", repetition.inference_start_ms, {"generated": 0})
        for number, when in enumerate(repetition.token_ms, 1):
            yield counter("tokens", when, {"generated": number})
