"""Reads the JSON that ONNX Runtime's profiler writes, one file for each session."""

import bisect
import math
from collections.abc import Mapping
from pathlib import Path

from mote_runtime.profile.strict import Fields, ProfileError, read_json
from mote_runtime.profile.trace.events import Part, Run, Span
from mote_runtime.profile.trace.vocabulary import PRODUCTS, READ_IN_PART, operator

PARTS = {"vision": Part.VISION, "embedding": Part.EMBEDDING, "decoder": Part.DECODER}
MAX_EVENTS = 1 << 22
_MAX_US = 1e15
_MAX_DIMENSIONS = 64
_RUN, _KERNEL = "model_run", "_kernel_time"
_FLOAT_BYTES = {"float": 4, "float16": 2, "bfloat16": 2, "double": 8}


def read_ort_profiles(files: Mapping[str, Path]) -> list[Run]:
    """Runs of all sessions in order of time; each file has a clock of its own, which starts with its session.

    `files` by the part of the model: "vision", "embedding", "decoder". Raises ProfileError where a file is damaged.
    """
    runs = [run for part, path in files.items() for run in _read(path, PARTS.get(part, Part.OTHER))]
    return sorted(runs, key=lambda run: run.begin_ns)


def _read(path: Path, part: Part) -> list[Run]:
    document = read_json(path)
    if not isinstance(document, list) or len(document) > MAX_EVENTS:
        raise ProfileError(f"{path} is no profile of ONNX Runtime: expected a list of at most {MAX_EVENTS} events")
    spans: list[Span] = []
    runs: list[Run] = []
    for index, row in enumerate(document):
        event = Fields(row, f"{path}: event {index}")
        if event.value("ph") != "X":
            continue
        begin = round(event.number("ts", 0, _MAX_US) * 1000)
        end = begin + round(event.number("dur", 0, _MAX_US) * 1000)
        name = event.text("name", 4000)
        if event.value("cat") == "Node" and name.endswith(_KERNEL):
            spans.append(_span(event.section("args"), name.removesuffix(_KERNEL), begin, end))
        elif name == _RUN:
            runs.append(Run(part, begin, end, []))
    _share_out(spans, runs)
    return runs


def _share_out(spans: list[Span], runs: list[Run]) -> None:
    """Put each operator into the run around it; those of a run that was not finished go nowhere."""
    runs.sort(key=lambda run: run.begin_ns)
    starts = [run.begin_ns for run in runs]
    for span in sorted(spans, key=lambda span: span.begin_ns):
        index = bisect.bisect_right(starts, span.begin_ns) - 1
        if index >= 0 and span.begin_ns <= runs[index].end_ns:
            runs[index].operators.append(span)


def _span(arguments: Fields, node: str, begin: int, end: int) -> Span:
    runtime_name = arguments.text("op_name", 200)
    name = operator(runtime_name)
    weights = None if name in READ_IN_PART else _parameter_bytes(arguments) + _prepacked_bytes(arguments, name)
    return Span(name, "op", begin, end, weights, {"runtime_name": runtime_name, "node": node[:200]})


def _parameter_bytes(arguments: Fields) -> int:
    """ONNX Runtime writes numbers as text here."""
    text = arguments.value("parameter_size")
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 19 else 0


def _prepacked_bytes(arguments: Fields, name: str) -> int:
    """Bytes of a product's weights where ONNX Runtime packed them anew and lists them as input no more: K * N values.

    Products of two activations list both.
    """
    inputs, outputs = (_shapes(arguments.value(f"{side}_type_shape")) for side in ("input", "output"))
    if name not in PRODUCTS[:1] or not inputs or not outputs or not inputs[0][1] or not outputs[0][1]:
        return 0
    kind, first = inputs[0]
    depth, width = first[-1], outputs[0][1][-1]
    if any(math.prod(shape) >= depth * width and len(shape) >= 2 for _, shape in inputs[1:]):
        return 0
    return depth * width * _FLOAT_BYTES.get(kind, 0)


def _shapes(value: object) -> list[tuple[str, list[int]]]:
    """`[{"float": [1, 34]}, ...]` as pairs; what is not of this form is left out."""
    if not isinstance(value, list):
        return []
    pairs = [next(iter(item.items())) for item in value if isinstance(item, dict) and len(item) == 1]
    return [(str(kind), shape) for kind, shape in pairs if _is_shape(shape)]


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 1 << 40 for size in value)
    )
