"""From records and traces to the files of a profile; where they came from, this machine or another device, does not matter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import mote_runtime
from mote_runtime.profile.bandwidth import Bandwidth
from mote_runtime.profile.comparison import Comparison
from mote_runtime.profile.measures import slowdown, summary
from mote_runtime.profile.record import FORMAT, FORMAT_VERSION, Record
from mote_runtime.profile.report import render
from mote_runtime.profile.trace.breakdown import breakdown, expert_load
from mote_runtime.profile.trace.chrome import TracedRun, chrome_trace
from mote_runtime.profile.trace.raw_trace import RawTrace
from mote_runtime.profile.trace.timeline import Timeline, build_timeline

PROFILE_FILE, REPORT_FILE, TRACE_FILE = "profile.json", "report.html", "trace.json"


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One model in one runtime: what was measured, and what one more answer's trace holds.

    Attributes:
        label: how the run is called in tables and drawings.
        model: facts of the model (`facts.model_facts`); only shown.
        settings: how it was measured; only shown.
        record: of the measured process.
        trace: None without a trace.
        traced_record: of the process that was traced, if that was another; its memory and tokens are the trace's counters.
        light: trace and record of a further answer in which only phases were recorded, where the runtime's own profiler slowed
            the other down; phases are summed from it.
    """

    label: str
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    record: Record
    trace: RawTrace | None = None
    traced_record: Record | None = None
    light: tuple[Record, RawTrace] | None = None


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What all runs have in common.

    Attributes:
        device: facts of the machine, `facts.device_facts` or a device's own; only shown, null where it does not say.
        versions: by name; only shown.
        command: the command line to repeat it.
        memory_limit: None where it was not measured.
        no_energy: why energy was not measured, as a phrase; None where it was.
    """

    device: Mapping[str, Any]
    versions: Mapping[str, str]
    command: Sequence[str]
    memory_limit: Bandwidth | None
    no_energy: str | None


@dataclass(frozen=True, slots=True)
class Profile:
    """`document` is what `profile.json` holds; `files` are the contents by name."""

    document: dict[str, Any]
    files: dict[str, str]
    comparisons: tuple[Comparison, ...] = ()


def build_profile(
    runs: Sequence[MeasuredRun], circumstances: Circumstances, comparisons: Sequence[Comparison] = ()
) -> Profile:
    """All files of a profile; `trace.json` only if at least one of the runs was traced. Raises ProfileError."""
    timelines = [None if run.trace is None else build_timeline(run.trace) for run in runs]
    lights = [None if run.light is None else build_timeline(run.light[1]) for run in runs]
    limit = circumstances.memory_limit
    speed = None if limit is None else limit.best_bytes_per_sec
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool": f"mote-profile {mote_runtime.__version__}",
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": list(circumstances.command),
        "device": dict(circumstances.device),
        "versions": dict(circumstances.versions),
        "energy": {"measured": circumstances.no_energy is None, "reason": circumstances.no_energy},
        "memory_limit": None if limit is None else limit.to_json(),
        "runs": [_run(*parts, speed) for parts in zip(runs, timelines, lights, strict=True)],
        "comparisons": [each.to_json() for each in comparisons],
    }
    document = json.loads(json.dumps(document))  # from here on exactly what a reader of the file will see
    files = {PROFILE_FILE: json.dumps(document, indent=1) + "\n", REPORT_FILE: render(document)}
    traced = [
        TracedRun(run.label, timeline, run.traced_record or run.record)
        for run, timeline in zip(runs, timelines, strict=True)
        if timeline is not None
    ]
    traced += [
        TracedRun(f"{run.label}, phases only", light, run.light[0])
        for run, light in zip(runs, lights, strict=True)
        if light is not None and run.light is not None
    ]
    if traced:
        files[TRACE_FILE] = json.dumps(chrome_trace(traced), separators=(",", ":")) + "\n"
    return Profile(document, files, tuple(comparisons))


def _run(run: MeasuredRun, timeline: Timeline | None, light: Timeline | None, speed: float | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "label": run.label,
        "model": dict(run.model),
        "settings": dict(run.settings),
        "record": run.record.to_json(),
        "summary": summary(run.record),
        "breakdown": None,
        "experts": None,
        "trace": None,
    }
    if timeline is not None:
        result["breakdown"] = breakdown(timeline, light, speed)
        result["experts"] = expert_load(timeline)
        result["trace"] = {
            "clipped_spans": timeline.clipped,
            "greatest_clip_ns": timeline.greatest_clip_ns,
            "dropped_phases": timeline.dropped,
            "slowdown": slowdown(run.record, run.traced_record),
            "phases_slowdown": None if run.light is None else slowdown(run.record, run.light[0]),
            "answer_ms": round((timeline.answer_ns[1] - timeline.answer_ns[0]) / 1e6, 4),
        }
    return result
