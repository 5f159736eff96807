"""Weights that a graph computes from constants, such as transposed, dequantized or ternarized ones: computed one at a time."""

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from mote_export.onnx_import.graph import FLOATS, INTEGERS, STANDARD, casts_to, constant
from mote_runtime.errors import MoteError

NUMBERS = (*FLOATS, *INTEGERS, ir.DataType.BOOL)  # of numpy, and no text, which takes many times as much
MOST_NODES = 64  # between a weight and its constants
MOST_GROWN = 1 << 24  # elements of a result that is larger than what it is made from
FOLDED = frozenset(
    {
        "Abs", "Add", "Cast", "CastLike", "Clip", "Concat", "DequantizeLinear", "Div", "Equal", "Gather", "Identity", "Max", "Min",
        "Mul", "Neg", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Round", "Sign", "Slice", "Squeeze", "Sub",
        "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
Array = NDArray[Any]


@dataclass(frozen=True)
class Recipe:
    """How a constant is computed; stays valid when its nodes are removed from their graph.

    Attributes:
        name: of the constant.
        nodes: in the order of computation; none for an initializer.
        leaves: the constants that they start from, by name.
    """

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    leaves: dict[str, ir.TensorProtocol]

    @property
    def itemsize(self) -> float:
        """Bytes of an element of the largest constant, as it is stored."""
        return max(self.leaves.values(), key=lambda tensor: tensor.size).dtype.bitwidth / 8


def recipe(value: ir.Value) -> Recipe | None:
    """How `value` is computed from constants alone by operators that keep sizes; None if it is not."""
    nodes: list[ir.Node] = []
    leaves: dict[str, ir.TensorProtocol] = {}
    waiting = [value]
    seen: set[ir.Value] = set()
    while waiting:
        current = waiting.pop()
        if current in seen or current.name is None:
            continue
        seen.add(current)
        tensor = constant(current)
        if tensor is not None:
            leaves[current.name] = tensor
            continue
        node = current.producer()
        if node is None or node.domain not in STANDARD or node.op_type not in FOLDED or len(nodes) == MOST_NODES:
            return None
        if not casts_to(node, NUMBERS):
            return None
        nodes.append(node)
        waiting.extend(item for item in node.inputs if item is not None)
    if not leaves or value.name is None:
        return None
    return Recipe(value.name, tuple(ir.serde.serialize_node(node) for node in _in_order(nodes)), leaves)


def _in_order(nodes: list[ir.Node]) -> list[ir.Node]:
    """Each after those whose results it takes; the nodes of a checked model have no cycle."""
    ordered: list[ir.Node] = []
    left = list(dict.fromkeys(nodes))
    while left:
        ready = [node for node in left if not any(item is not None and item.producer() in left for item in node.inputs)]
        if not ready:
            raise MoteError("the graph has a cycle among its constants")
        ordered += ready
        left = [node for node in left if node not in ready]
    return ordered


@contextmanager
def computed(found: Recipe, opset: int) -> Iterator[Array]:
    """The constant as an array, which may be a map of the external data; that is let go at the end.

    Raises:
        MoteError: an operator refuses its inputs, or would make more of them than a weight has; a constant cannot be read.
    """
    results: dict[str, Array] = {}
    try:
        for name, tensor in found.leaves.items():
            results[name] = _stored(name, tensor)
        for node in found.nodes:
            results[node.output[0]] = _run(node, results, opset)
        yield results[found.name]
    finally:
        results.clear()
        for tensor in found.leaves.values():
            if isinstance(tensor, ir.ExternalTensor):
                if tensor.raw is not None:
                    tensor.raw.madvise(mmap.MADV_DONTNEED)  # its pages count as memory of this process
                with suppress(BufferError):  # somebody still looks at it: then the map goes with him
                    tensor.release()


def _stored(name: str, tensor: ir.TensorProtocol) -> Array:
    try:
        return tensor.numpy()
    except (ValueError, TypeError, OSError) as error:  # a file that was changed since it was checked
        raise MoteError(f"{name} cannot be read: {error}") from error


def _grown(node: onnx.NodeProto, arrays: dict[str, Array]) -> int:
    """How many elements a node makes, at most; 0 where that is not known before."""
    inputs = [arrays[name] for name in node.input if name]
    if node.op_type == "Concat":
        return sum(array.size for array in inputs)
    if node.op_type == "Gather":
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        data, indices = inputs[:2]
        return data.size // max(1, data.shape[axis]) * indices.size if -data.ndim <= axis < data.ndim else 0
    try:
        return math.prod(np.broadcast_shapes(*(array.shape for array in inputs)))
    except ValueError:
        return 0  # no operator that broadcasts


def _run(node: onnx.NodeProto, results: dict[str, Array], opset: int) -> Array:
    arrays = {name: results[name] for name in node.input if name}
    largest = max((array.size for array in arrays.values()), default=0)
    grown = _grown(node, arrays)
    if grown > max(largest, MOST_GROWN):
        raise MoteError(f"{node.op_type} {node.name} would make {grown} numbers of {largest}")
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in arrays]
    outputs = [onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UNDEFINED, None)]
    graph = onnx.helper.make_graph([node], "constant", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        result: Array = ReferenceEvaluator(model).run(None, arrays)[0]
    except Exception as error:  # numpy's own kinds, by operator
        raise MoteError(f"{node.op_type} {node.name} cannot be computed: {error}") from error
    return result
