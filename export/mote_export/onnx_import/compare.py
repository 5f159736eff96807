"""Both files in ONNX Runtime, on the same inputs: by how much their outputs differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mote_export.verify import VerificationError, relative_difference
from mote_runtime.errors import MoteError
from mote_runtime.library import get_library_path

Array = NDArray[Any]
SIZES = (2, 5, 7, 11, 13)  # of symbolic dimensions, in the order of their appearance; the last ones again after that
PAST, TOTAL = "past_sequence_length", "total_sequence_length"  # as transformers and optimum name them
MOST_ELEMENTS = 1 << 28
TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int16)": np.int16, "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64, "tensor(uint32)": np.uint32, "tensor(uint16)": np.uint16, "tensor(uint8)": np.uint8,
}  # fmt: skip
IDS = 8  # integers are most often ids of tokens: small ones exist in every vocabulary


@dataclass(frozen=True)
class Comparison:
    """Of two files.

    Attributes:
        rtol: the tolerance, of `mote_export.verify.relative_difference`; of integers, the share that may differ.
        differences: by the name of the output.
        inputs: shapes of what was fed, by name.
    """

    rtol: float
    differences: dict[str, float]
    inputs: dict[str, list[int]]

    @property
    def greatest(self) -> float:
        return max(self.differences.values())


def compare(source: Path, rewritten: Path, rtol: float, inputs: Mapping[str, Array] | None = None) -> Comparison:
    """Runs one file after the other, so that only one is in memory.

    Raises:
        VerificationError: an output differs by more than `rtol`, or says nothing as it is not finite.
        MoteError: a file cannot be run with these inputs.
    """
    expected, feeds = _run(source, inputs, "the model itself")
    found, _ = _run(rewritten, feeds, "the rewritten model")
    differences = {name: _difference(name, found[name], array) for name, array in expected.items()}
    name = max(differences, key=lambda key: differences[key])
    if not differences[name] <= rtol:
        raise VerificationError(
            f"the rewritten model's {name} differs by {differences[name]:.2g} of its standard deviation, more than the tolerance "
            f"of {rtol:g} (--rtol)"
        )
    return Comparison(rtol, differences, {name: list(array.shape) for name, array in feeds.items()})


def _run(path: Path, inputs: Mapping[str, Array] | None, what: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Outputs and inputs, by name."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # As the graph says it: further optimizations round activations, such as the MatMulNBits that a dequantized weight becomes.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = dict(inputs) if inputs is not None else _random_inputs(session)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True)), feeds
    except MoteError:
        raise
    except Exception as error:  # of ONNX Runtime's own kinds, which have no common base
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise MoteError(f"ONNX Runtime cannot run {what}{_hint(line, inputs is not None)} ({line})") from error


def _hint(line: str, has_inputs: bool) -> str:
    if "NOT_IMPLEMENTED" in line:  # most often a type, such as bfloat16, which no inputs change
        return " on this processor, so both cannot be compared here: --no-verify does without"
    return "" if has_inputs else " with random inputs: give it others with --inputs, or do without with --no-verify"


def _random_inputs(session: ort.InferenceSession) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    sizes: dict[str, int] = {}
    declared = session.get_inputs()
    for item in declared:
        for size in item.shape:
            if isinstance(size, str) and size not in sizes:
                sizes[size] = SIZES[min(len(sizes), len(SIZES) - 1)]
    if PAST in sizes and TOTAL in sizes:
        sizes[TOTAL] = sizes[PAST] + sizes.get("sequence_length", 1)
    return {item.name: _random(rng, item, [_size(size, sizes) for size in item.shape]) for item in declared}


def _size(size: int | str | None, sizes: Mapping[str, int]) -> int:
    if isinstance(size, str):
        return sizes[size]
    return SIZES[0] if size is None else size


def _random(rng: np.random.Generator, item: Any, shape: list[int]) -> Array:
    if item.type not in TYPES:
        raise MoteError(f"{item.name} is a {item.type}, for which there are no random values: use --inputs")
    if np.prod(shape, dtype=np.float64) > MOST_ELEMENTS:
        raise MoteError(f"{item.name} has shape {shape}, too many random values: use --inputs")
    dtype = np.dtype(TYPES[item.type])
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b" or "mask" in item.name:
        return np.ones(shape, dtype)
    return rng.integers(0, IDS, shape).astype(dtype)


def _difference(name: str, found: Array, expected: Array) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise VerificationError(
            f"the rewritten model's {name} is {found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}"
        )
    if found.size == 0:
        return 0.0
    if expected.dtype.kind != "f":
        return float(np.mean(found != expected))
    if not np.isfinite(expected).all():
        raise VerificationError(
            f"the model's {name} is not finite for random inputs, which tells nothing: use --inputs"
        )
    if np.array_equal(found, expected):
        return 0.0
    return relative_difference(found.astype(np.float64), expected.astype(np.float64))
