"""Looking at a graph from its values upwards: who made them, constants, shapes."""

from collections.abc import Container, Iterator

import numpy as np
import onnx_ir as ir

STANDARD = ("", "ai.onnx")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
INTEGERS = (ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64)  # that hold every 8-bit code
SMALLEST = np.finfo(np.float32).tiny  # smaller numbers lose digits
NO_NUMBERS = (ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that made a value, if it is a standard operator of one of these types."""
    node = None if value is None else value.producer()
    if node is None or node.domain not in STANDARD or node.op_type not in op_types:
        return None
    return node


def plain(value: ir.Value, types: Container[int] = FLOATS) -> ir.Value:
    """The value behind identities and casts to these types; a cast to integers would change what is no integer."""
    while (node := made_by(value, "Cast", "Identity")) is not None and node.inputs[0] is not None:
        if not casts_to(node, types):
            break
        value = node.inputs[0]
    return value


def casts_to(node: ir.Node, types: Container[int] = FLOATS) -> bool:
    """Whether a node is no Cast, or one to these types."""
    return node.op_type != "Cast" or node.attributes.get_int("to", 0) in types


def operands(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The two inputs of a commutative operator, in both orders."""
    first, second = node.inputs[0], node.inputs[1]
    if first is not None and second is not None:
        yield first, second
        yield second, first


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer that callers cannot replace, or of a Constant node."""
    if value is None or value.is_graph_input():
        return None
    try:
        return ir.convenience.get_const_tensor(value)
    except ValueError:  # a Constant node of several attributes or of an unknown one
        return None


def scalar(value: ir.Value | None) -> float | None:
    """A constant of one element."""
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or tensor.dtype in NO_NUMBERS:
        return None
    return float(tensor.numpy().reshape(-1)[0])


def is_positive_float32(number: float) -> bool:
    """Whether a number can be the scale of an operator: neither too small for float32 nor too large."""
    return bool(SMALLEST <= number <= np.finfo(np.float32).max)


def width(value: ir.Value) -> int | None:
    """The last dimension, where it is known."""
    shape = value.shape
    return shape[-1] if shape is not None and len(shape) > 0 and isinstance(shape[-1], int) else None


def rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def describe_shape(value: ir.Value) -> list[int | str] | None:
    """Dimensions, symbolic ones by their names."""
    if value.shape is None:
        return None
    return [size if isinstance(size, int) else str(size.value or "?") for size in value.shape]
