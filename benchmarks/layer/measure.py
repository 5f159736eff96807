"""Times of one layer, by operator, tokens and threads.

Operators take turns, so that a slow minute of the machine meets all of them; just one session is open at a time, since idle
threads of another would spin.
"""

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime

from .graphs import Model, WeightFiles, layers_in_turn, traffic_of, write
from .limits import dram_of_the_moment
from .operators import OURS, PEER, Operator
from .shapes import EXPERTS, MAX_DECODE_TOKENS, Shape

INPUTS = 16  # different tokens, so that every expert is used
WARM_UP = 2
#: A round that takes this many seconds warms up enough by itself.
LONG_ROUND = 0.3
#: Bytes read before one of them is read again, as multiples of the L3.
DECODE_L3S = 4
PREFILL_L3S = 2  # bound by arithmetic; a whole decode graph would take seconds for each call of a slow peer


@dataclass(frozen=True)
class Effort:
    """How long a point is measured, in each turn."""

    turns: int
    min_rounds: int
    min_seconds: float


@dataclass(frozen=True)
class Setting:
    effort: Effort
    l3_bytes: int
    plugin: Path  # ours, for ONNX Runtime
    limits: Path  # the program


@dataclass(frozen=True)
class Point:
    shape: str
    operator: str
    tokens: int
    threads: int


@dataclass
class Samples:
    layer_seconds: list[float] = field(default_factory=list)
    bytes_per_layer: float = 0.0
    layers: int = 0
    failure: str = ""
    dram_bytes_s: list[float] = field(default_factory=list)  # just before and just after, in each turn; ours only


def open_session(path: Path, threads: int, plugin: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(str(plugin))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_finite(session: onnxruntime.InferenceSession, x: np.ndarray) -> None:
    """A row that is not finite is skipped by our layer, and would be a time for nothing."""
    if not all(np.isfinite(y).all() for y in session.run(None, {"x": x})):
        raise ValueError("a result is not finite")


def inputs_for(shape: Shape, tokens: int) -> list[np.ndarray]:
    rng = np.random.default_rng(tokens)
    return [rng.standard_normal((tokens, shape.hidden), dtype=np.float32) for _ in range(INPUTS)]


def time_rounds(
    run: Callable[[np.ndarray], object], inputs: list[np.ndarray], effort: Effort
) -> Iterator[tuple[int, float]]:
    """(index of the input, seconds), after a warm-up, until both the number of rounds and the time are reached."""
    spent, rounds = 0.0, -WARM_UP
    while rounds < effort.min_rounds or spent < effort.min_seconds:
        index = rounds % len(inputs)
        start = time.perf_counter()
        run(inputs[index])
        seconds = time.perf_counter() - start
        if rounds >= 0:
            spent += seconds
            yield index, seconds
        rounds = 0 if rounds < 0 and seconds > LONG_ROUND else rounds + 1


def _measure_session(
    model: Model, shape: Shape, threads: int, tokens: list[int], setting: Setting
) -> Iterator[tuple[int, Samples]]:
    session = open_session(model.path, threads, setting.plugin)
    check_finite(session, inputs_for(shape, tokens[0])[0])
    # All layers run; fetching one result spares the copies of the others.
    last = [session.get_outputs()[-1].name]
    for count in tokens:
        inputs = inputs_for(shape, count)
        rounds = list(time_rounds(lambda x: session.run(last, {"x": x}), inputs, setting.effort))
        read = {index: model.bytes_per_layer(inputs[index]) for index in {index for index, _ in rounds}}
        mean_bytes = float(np.mean([read[index] for index, _ in rounds]))
        yield count, Samples([seconds / model.layers for _, seconds in rounds], mean_bytes, model.layers)


def _models(
    folder: Path, files: WeightFiles, shape: Shape, operator: Operator, tokens: list[int], l3: int
) -> Iterator[tuple[Model, list[int]]]:
    """The graph for few tokens and the one for many, with the numbers of tokens that they serve."""
    traffic = traffic_of(shape, operator.layer)
    few = [count for count in tokens if count <= MAX_DECODE_TOKENS]
    many = [count for count in tokens if count > MAX_DECODE_TOKENS]
    for kind, counts, used, l3s in (("decode", few, 1, DECODE_L3S), ("prefill", many, EXPERTS, PREFILL_L3S)):
        if counts:
            layers = layers_in_turn(traffic, used, l3s * l3)
            yield write(folder, f"{operator.name}-{kind}", shape, operator.layer, layers, files), counts


def measure_shape(
    folder: Path,
    shape: Shape,
    operators: list[Operator],
    tokens: list[int],
    threads: list[int],
    setting: Setting,
    advance: Callable[[str], None],
) -> dict[Point, Samples]:
    """All points of a shape. An operator of ours that fails is an error; a peer that does is reported."""
    files = WeightFiles(folder)
    models = {
        operator: list(_models(folder, files, shape, operator, tokens, setting.l3_bytes)) for operator in operators
    }
    results: dict[Point, Samples] = {}
    for _ in range(setting.effort.turns):
        for operator, model, counts, thread_count in _turn(models, threads):
            advance(f"{shape.name} {operator.name}, {thread_count} threads")
            gc.collect()
            reads_dram = operator.side == OURS and max(counts) <= MAX_DECODE_TOKENS
            dram = [dram_of_the_moment(setting.limits, thread_count)] if reads_dram else []
            try:
                found = dict(_measure_session(model, shape, thread_count, counts, setting))
                gc.collect()
                dram += [dram_of_the_moment(setting.limits, thread_count)] if reads_dram else []
                for count, samples in found.items():
                    point = Point(shape.name, operator.name, count, thread_count)
                    before = results.get(point, Samples())
                    samples.layer_seconds = before.layer_seconds + samples.layer_seconds
                    samples.dram_bytes_s = before.dram_bytes_s + dram
                    results[point] = samples
            except Exception as error:
                if operator.side != PEER:
                    raise
                for count in counts:
                    point = Point(shape.name, operator.name, count, thread_count)
                    results[point] = Samples(failure=str(error).splitlines()[0])
    return results


def _turn(
    models: dict[Operator, list[tuple[Model, list[int]]]], threads: Iterable[int]
) -> Iterator[tuple[Operator, Model, list[int], int]]:
    for operator, graphs in models.items():
        for model, counts in graphs:
            for thread_count in threads:
                yield operator, model, counts, thread_count
