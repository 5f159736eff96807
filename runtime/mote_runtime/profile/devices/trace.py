"""The traces that the native runner wrote on a device, as `timeline` takes them: of one answer, on one clock."""

from collections.abc import Sequence

from mote_runtime.profile.devices.results import Measurement
from mote_runtime.profile.trace.alignment import Bounds, align
from mote_runtime.profile.trace.events import Part, Run
from mote_runtime.profile.trace.inner import InnerTrace, read_events
from mote_runtime.profile.trace.raw_trace import RawTrace
from mote_runtime.profile.trace.readers import read_runs


def read_trace(measured: Measurement) -> RawTrace | None:
    """The trace of one measurement, None where nothing was traced; raises ProfileError where it is damaged."""
    if measured.phases is None and not measured.operators:
        return None
    manifest = measured.manifest
    runs = read_runs(manifest.target, dict(measured.operators), manifest)
    if manifest.target == "onnxruntime":
        runs = {"sessions": _bring_together(runs)}
    phases = b"" if measured.phases is None else measured.phases
    return RawTrace(
        runs=runs,
        calls=(),
        marks=None,
        moe_layers=manifest.moe.layers,
        num_experts=manifest.moe.num_experts,
        phases=read_events(phases, f"the phases of {manifest.target}"),
        # The names do not come with the events. Both plugins have the core's, and this one can be opened without its runtime.
        phase_names=() if measured.phases is None else InnerTrace("onnxruntime").phase_names,
    )


def _bring_together(runs: dict[str, list[Run]]) -> list[Run]:
    """The runs of ONNX Runtime's sessions, each with a clock of its own, on the decoder's.

    Their order is known: pictures, then the prompt's embedding before its decoding, and so on for each token. Where the numbers
    do not say so (a prompt that was decoded in pieces), only the decoder's runs are kept.
    """
    decoder, embedding, vision = (runs.get(part.value, []) for part in (Part.DECODER, Part.EMBEDDING, Part.VISION))
    if not decoder or len(embedding) != len(decoder):
        return decoder
    _shift(embedding, align(_bounds(embedding, decoder)).offset_ns)
    if vision:
        _shift(vision, embedding[0].begin_ns - vision[-1].end_ns)
    together = sorted([*vision, *embedding, *decoder], key=lambda run: run.begin_ns)
    start = min(run.begin_ns for run in together)
    _shift(together, -start)  # no time before 0
    return together


def _bounds(embedding: Sequence[Run], decoder: Sequence[Run]) -> list[Bounds]:
    """Shifts that bring each run of the embedding between the decoder's run before and the one that it is for."""
    bounds = []
    for index, (run, following) in enumerate(zip(embedding, decoder, strict=True)):
        latest = following.begin_ns - run.end_ns
        earliest = decoder[index - 1].end_ns - run.begin_ns if index else None
        if earliest is None:
            earliest = latest - following.begin_ns if len(decoder) > 1 else latest
        bounds.append((min(earliest, latest), latest))
    return bounds


def _shift(runs: Sequence[Run], offset_ns: int) -> None:
    for run in runs:
        run.shift(offset_ns)
