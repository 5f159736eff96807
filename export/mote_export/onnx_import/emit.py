"""How the rules emit a node of ONNX domain `mote`, which computes in float32."""

from typing import Any

import numpy as np
import onnx_ir as ir

from mote_export.onnx_import.activations import Activation
from mote_export.onnx_import.state import Rewritten, State
from mote_export.onnx_import.weights import TernaryMatrix
from mote_export.onnx_schemas import DOMAIN, VERSION
from mote_export.packing import LAYOUT_VERSION


def float32(op: Any, value: ir.Value) -> ir.Value:
    """`value`, with a Cast where it is of another type."""
    if value.dtype == ir.DataType.FLOAT:
        return value
    cast: ir.Value = op.Cast(value, to=ir.DataType.FLOAT)
    cast.dtype, cast.shape = ir.DataType.FLOAT, value.shape
    return cast


def ternary_matmul(
    op: Any, state: State, node: ir.Node, activation: Activation, matrix: TernaryMatrix, factor: float = 1.0
) -> ir.Value:
    """`mote::TernaryMatMul` in place of `node`, of whose name it takes over; the scale is that of the matrix times `factor`."""
    scale = state.weights.numbers(np.array([matrix.scale * factor]), f"{matrix.name}_scale")
    packed = state.weights.packed(matrix)
    y: ir.Value = op.op(
        "TernaryMatMul",
        float32(op, activation.value),
        packed,
        scale,
        _domain=DOMAIN,
        _version=VERSION,
        _name=node.name,
        in_features=matrix.columns,
        out_features=matrix.rows,
        packing=state.options.packing,
        layout_version=LAYOUT_VERSION,
    )
    y.dtype = ir.DataType.FLOAT
    y.shape = node.outputs[0].shape
    new = y.producer()
    assert new is not None
    assert packed.const_value is not None
    state.matmuls[new] = (
        matrix,
        Rewritten(
            op="TernaryMatMul",
            name=node.name or "",
            shape=(matrix.rows, matrix.columns),
            bytes_before=matrix.stored_bytes,
            bytes_after=packed.const_value.nbytes,
            packing=state.options.packing,
            activations=activation.rounding,
            error=matrix.error,
        ),
    )
    return y


def as_before(op: Any, y: ir.Value, before: ir.Value) -> ir.Value:
    """y in the type of the value that it replaces."""
    if before.dtype == ir.DataType.FLOAT:
        return y
    cast: ir.Value = op.Cast(y, to=before.dtype)
    return cast
