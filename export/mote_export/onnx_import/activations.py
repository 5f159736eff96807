"""Rounded activations in a graph: codes = clip(round(x * s)), s = 127 / max(|x|, 1e-5) of each token, and codes / s.

They appear in several spellings: quotients as products with a reciprocal, the straight-through x + (codes / s - x) of
quantization-aware training, casts to int8 and back. What is matched is the arithmetic of step 1 of docs/operator.md; the operators
do it themselves, so the nodes that did it are left without a user.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from mote_export.model.quantizers import INT8_MAX, INT8_MIN, SCALE_FLOOR
from mote_export.onnx_import.graph import FLOATS, INTEGERS, constant, made_by, operands, plain, rank, scalar, width

TOLERANCE = 1e-3  # of constants, which were computed with others on the way
ROW_MOVES = ("Reshape", "Gather", "GatherND", "Squeeze", "Unsqueeze")  # they move tokens, and change none


@dataclass(frozen=True)
class Step:
    """A value [..., 1]: m / 127 of the tokens of x, m = max(|x|, 1e-5), or 127 / m if it `is_inverse`."""

    x: ir.Value
    is_inverse: bool


@dataclass(frozen=True)
class Activation:
    """What an operator is given as x.

    Attributes:
        value: before it is rounded, or a rounded one that was moved on the way, for which rounding again changes nothing.
        rounding: `absorbed`, `repeated` for a moved one, `new` where the graph had none.
    """

    value: ir.Value
    rounding: Literal["absorbed", "repeated", "new"]


def rounded_activation(value: ir.Value) -> Activation | None:
    """The activation that a rounded one stands for; None if the value is not rounded in a way that is known."""
    x = fake_quantized(value)
    if x is not None:
        return Activation(x, "absorbed")
    moved = value
    while (node := made_by(moved, *ROW_MOVES)) is not None and _moves_rows(node):
        assert node.inputs[0] is not None
        moved = node.inputs[0]
    if moved is not value and fake_quantized(moved) is not None:
        return Activation(value, "repeated")
    return None


def fake_quantized(value: ir.Value) -> ir.Value | None:
    """x of codes / s or codes * d, with or without a straight-through estimator around it."""
    value = plain(value)
    add = made_by(value, "Add")
    if add is None:
        return _dequantized(value)
    for x, difference in operands(add):
        sub = made_by(plain(difference), "Sub")
        if sub is None or sub.inputs[0] is None or sub.inputs[1] is not x:
            continue
        found = _dequantized(plain(sub.inputs[0]))
        if found is not None and plain(found) is plain(x):
            return found
    return None


def _dequantized(value: ir.Value) -> ir.Value | None:
    node = made_by(value, "Mul", "Div")
    if node is None:
        return None
    for codes, step in operands(node):
        found = rounded_codes(codes)
        scale = token_step(step)
        if found is not None and scale is not None and found is scale.x and scale.is_inverse == (node.op_type == "Div"):
            return found
        if node.op_type == "Div":
            break
    return None


def rounded_codes(value: ir.Value) -> ir.Value | None:
    """x of integers clip(round(x * s), -128, 127), which may be cast to integers."""
    value = plain(value, (*FLOATS, *INTEGERS))
    outer = made_by(value, "Clip", "Round")
    inner = None if outer is None or outer.inputs[0] is None else made_by(outer.inputs[0], "Clip", "Round")
    if outer is None or inner is None or outer.op_type == inner.op_type or inner.inputs[0] is None:
        return None
    if not _is_int8_range(outer if outer.op_type == "Clip" else inner):
        return None
    product = made_by(inner.inputs[0], "Mul", "Div")
    if product is None:
        return None
    for x, step in operands(product):
        scale = token_step(step)
        if scale is not None and scale.x is x and scale.is_inverse == (product.op_type == "Mul"):
            return x
        if product.op_type == "Div":
            break
    return None


def token_step(value: ir.Value) -> Step | None:
    """m / 127 or 127 / m, in the spellings that exporters write."""
    reciprocal = made_by(plain(value), "Reciprocal")
    if reciprocal is not None and reciprocal.inputs[0] is not None:
        step = _quotient(reciprocal.inputs[0])
        return None if step is None else Step(step.x, not step.is_inverse)
    return _quotient(value)


def _quotient(value: ir.Value) -> Step | None:
    node = made_by(plain(value), "Div", "Mul")
    if node is None:
        return None
    for first, second in operands(node):
        if node.op_type == "Div":
            if _is(first, INT8_MAX) and (x := _token_maximum(second)) is not None:
                return Step(x, True)
            if _is(second, INT8_MAX) and (x := _token_maximum(first)) is not None:
                return Step(x, False)
            return None
        reciprocal = made_by(second, "Reciprocal") if _is(first, INT8_MAX) else None
        if reciprocal is not None and reciprocal.inputs[0] is not None:
            x = _token_maximum(reciprocal.inputs[0])
            return None if x is None else Step(x, True)
        if _is(first, 1 / INT8_MAX) and (x := _token_maximum(second)) is not None:
            return Step(x, False)
    return None


def _token_maximum(value: ir.Value) -> ir.Value | None:
    """x of max(max |x| of a token, 1e-5)."""
    floor = made_by(value, "Clip", "Max")
    if floor is None or len(floor.inputs) < 2:
        return None
    if floor.op_type == "Clip" and len(floor.inputs) > 2 and floor.inputs[2] is not None:
        return None
    for maximum, least in operands(floor):
        reduced = made_by(plain(maximum), "ReduceMax")
        if reduced is not None and _is(least, SCALE_FLOOR) and _is_over_tokens(reduced):
            assert reduced.inputs[0] is not None
            magnitude = made_by(reduced.inputs[0], "Abs")
            return None if magnitude is None else magnitude.inputs[0]
        if floor.op_type == "Clip":
            break
    return None


def _is_over_tokens(reduce: ir.Node) -> bool:
    """Over the last axis, which is kept."""
    if reduce.attributes.get_int("keepdims", 1) != 1 or reduce.inputs[0] is None:
        return False
    if len(reduce.inputs) > 1:
        axis = scalar(reduce.inputs[1])
    else:
        axes = reduce.attributes.get_ints("axes", ())
        axis = axes[0] if len(axes) == 1 else None
    if axis == -1:
        return True
    dimensions = rank(reduce.inputs[0])
    return dimensions is not None and axis == dimensions - 1


def _is_int8_range(clip: ir.Node) -> bool:
    """A floor of -127 does the same as -128: no code is below -127."""
    if len(clip.inputs) < 3 or not _is(clip.inputs[2], INT8_MAX):
        return False
    return _is(clip.inputs[1], INT8_MIN) or _is(clip.inputs[1], -INT8_MAX)


def _is(value: ir.Value | None, expected: float) -> bool:
    """Whether a constant is a number, up to `TOLERANCE` or as it is in the constant's own type: 1e-5 is 1.0014e-5 in float16."""
    number, tensor = scalar(value), constant(value)
    if number is None or tensor is None:
        return False
    rounded = float(np.array(expected).astype(tensor.dtype.numpy())) if tensor.dtype in FLOATS else expected
    return number == rounded or abs(number - expected) <= TOLERANCE * abs(expected)


def _moves_rows(node: ir.Node) -> bool:
    """Whether tokens come out whole: with the width that they had, gathered along other axes than the last."""
    data, result = node.inputs[0], node.outputs[0]
    if data is None or width(data) is None or width(data) != width(result):
        return False
    dimensions = rank(data)
    if node.op_type == "Gather":
        return (
            dimensions is not None and dimensions > 1 and node.attributes.get_int("axis", 0) not in (-1, dimensions - 1)
        )
    if node.op_type == "GatherND":
        indices = node.inputs[1]
        return dimensions is not None and indices is not None and width(indices) in range(1, dimensions)
    return True
