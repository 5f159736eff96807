"""Looking at a graph from its values upwards: who made them, constants, shapes."""

from collections.abc import Iterator

import onnx_ir as ir

STANDARD = ("", "ai.onnx")


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that made a value, if it is a standard operator of one of these types."""
    node = None if value is None else value.producer()
    if node is None or node.domain not in STANDARD or node.op_type not in op_types:
        return None
    return node


def plain(value: ir.Value) -> ir.Value:
    """The value behind casts and identities."""
    while (node := made_by(value, "Cast", "Identity")) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


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
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(-1)[0])


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
