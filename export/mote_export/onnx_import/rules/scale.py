"""Mul(mote::TernaryMatMul(x, packed, scale), c) -> mote::TernaryMatMul(x, packed, scale * c), for a positive constant c."""

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from mote_export.onnx_import.activations import Activation
from mote_export.onnx_import.emit import as_before, ternary_matmul
from mote_export.onnx_import.graph import casts_to, is_positive_float32, made_by, operands, rank, scalar
from mote_export.onnx_import.rules.base import TernaryRule
from mote_export.onnx_schemas import DOMAIN


class ScaleIntoTernaryMatMul(TernaryRule):
    """The scale of weights that are stored as -1, 0 and 1 stands behind their product, or, in half precision, behind its Cast."""

    def pattern(self, op: Any, a: ir.Value, b: ir.Value) -> Any:
        return op.Mul(a, b, _outputs=["y"])

    def check(self, context: MatchContext, y: ir.Value, **_: Any) -> MatchResult:
        found = self._find(y)
        if found is None:
            return MatchResult().fail("no product of ternary weights and a positive constant")
        return MatchResult()

    def rewrite(self, op: Any, y: ir.Value, **_: Any) -> ir.Value:
        found = self._find(y)
        assert found is not None
        node, factor = found
        matrix, record = self.state.matmuls.pop(node)
        assert node.inputs[0] is not None
        before = scalar(node.inputs[2])
        assert before is not None
        activation = Activation(node.inputs[0], record.activations)  # type: ignore[arg-type]
        return as_before(
            op, ternary_matmul(op, self.state, node, activation, matrix, before / matrix.scale * factor), y
        )

    def _find(self, y: ir.Value) -> tuple[ir.Node, float] | None:
        product = made_by(y, "Mul")
        for result, factor in () if product is None else operands(product):
            number = scalar(factor)
            is_only_use = _is_only_use(result)
            cast = made_by(result, "Cast")
            if cast is not None and cast.inputs[0] is not None and casts_to(cast):
                result = cast.inputs[0]
                is_only_use = is_only_use and _is_only_use(result)
            node = result.producer()
            if node is None or node not in self.state.matmuls or number is None or not is_only_use:
                continue
            is_smaller = (rank(factor) or 0) <= (rank(result) or 0)
            if node.domain == DOMAIN and is_smaller and self._is_scale(node, number):
                return node, number
        return None

    def _is_scale(self, node: ir.Node, factor: float) -> bool:
        """Whether the scale of a node times `factor` is a positive float32, and the scale of its matrix as well."""
        scale = scalar(node.inputs[2])
        return scale is not None and self.state.matmuls[node][0].scale > 0 and is_positive_float32(scale * factor)


def _is_only_use(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()
