"""Gemm(x, W, C) -> Add(mote::TernaryMatMul(x, packed W, alpha * scale), C)."""

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from mote_export.onnx_import.emit import as_before, ternary_matmul
from mote_export.onnx_import.graph import is_positive_float32
from mote_export.onnx_import.rules.base import TernaryRule
from mote_export.onnx_import.weights import NotPackableError


class GemmToTernaryMatMul(TernaryRule):
    """As MatMul, with W [K, N] or [N, K], a positive alpha, and a bias that is added as it is."""

    def pattern(self, op: Any, x: ir.Value, w: ir.Value) -> Any:
        return op.Gemm(x, w, _outputs=["y"], _allow_other_inputs=True, _allow_other_attributes=True)

    def check(self, context: MatchContext, x: ir.Value, w: ir.Value, y: ir.Value, **_: Any) -> MatchResult:
        node = y.producer()
        assert node is not None
        refused = self.refuse_place(context, y)
        if refused is not None:
            return refused
        alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        if node.attributes.get_int("transA", 0):
            return self.state.refuse(node, "its activations are transposed")
        if not alpha > 0:
            return self.state.refuse(node, f"its alpha is {alpha}, expected a positive factor")
        if _bias(node) is not None and beta != 1.0:
            return self.state.refuse(node, f"its bias has a factor, beta = {beta}")
        try:
            matrix = self.state.weights.ternary(w, is_transposed=_is_transposed(node))
            if matrix.scale > 0 and not is_positive_float32(alpha * matrix.scale):
                return self.state.refuse(node, f"its alpha is {alpha}, for which float32 has no scale")
            self.state.activation(x)
        except NotPackableError as error:
            return self.state.refuse(node, str(error))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> ir.Value:
        node = y.producer()
        assert node is not None
        matrix = self.state.weights.ternary(w, is_transposed=_is_transposed(node))
        alpha = node.attributes.get_float("alpha", 1.0)
        product = ternary_matmul(op, self.state, node, self.state.activation(x), matrix, alpha)
        result = as_before(op, product, y)
        bias = _bias(node)
        if bias is None:
            return result
        result.dtype, result.shape = y.dtype, y.shape
        added: ir.Value = op.Add(result, bias, _name=f"{node.name}/bias")
        return added


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _is_transposed(node: ir.Node) -> bool:
    return node.attributes.get_int("transB", 0) != 0
