"""MatMul(x, W) -> mote::TernaryMatMul(x, packed W, scale)."""

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from mote_export.onnx_import.emit import as_before, ternary_matmul
from mote_export.onnx_import.rules.base import TernaryRule
from mote_export.onnx_import.weights import NotPackableError


class MatMulToTernaryMatMul(TernaryRule):
    """W [K, N] constant and ternary, x rounded to 8 bits or allowed to be."""

    def pattern(self, op: Any, x: ir.Value, w: ir.Value) -> Any:
        return op.MatMul(x, w, _outputs=["y"])

    def check(self, context: MatchContext, x: ir.Value, w: ir.Value, y: ir.Value, **_: Any) -> MatchResult:
        node = y.producer()
        assert node is not None
        refused = self.refuse_place(context, y)
        if refused is not None:
            return refused
        try:
            self.state.weights.ternary(w, is_transposed=False)
            self.state.activation(x)
        except NotPackableError as error:
            return self.state.refuse(node, str(error))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> ir.Value:
        node = y.producer()
        assert node is not None
        matrix = self.state.weights.ternary(w, is_transposed=False)
        return as_before(op, ternary_matmul(op, self.state, node, self.state.activation(x), matrix), y)
