"""Div(MatMul(codes of x, W), s * c) -> mote::TernaryMatMul(x, packed W, scale / c), as packed layers of BitNet compute it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from mote_export.onnx_import.activations import Activation, Step, rounded_codes, token_step
from mote_export.onnx_import.emit import as_before, ternary_matmul
from mote_export.onnx_import.graph import is_positive_float32, made_by, operands, plain, rank, scalar
from mote_export.onnx_import.rules.base import TernaryRule
from mote_export.onnx_import.state import MAX_RANK
from mote_export.onnx_import.weights import NotPackableError

MOST_FACTORS = 4


@dataclass(frozen=True)
class Scaled:
    """x, W and the factor of a product of integer codes."""

    x: ir.Value
    w: ir.Value
    factor: float


class IntegerCodesToTernaryMatMul(TernaryRule):
    """The step of the activations is a factor behind the product instead of before it."""

    def pattern(self, op: Any, a: ir.Value, b: ir.Value) -> Any:
        return op.Div(a, b, _outputs=["y"])

    def check(self, context: MatchContext, y: ir.Value, **_: Any) -> MatchResult:
        found = _find(y)
        if found is None:
            return MatchResult().fail("no product of rounded activations")
        refused = self.refuse_place(context, y)
        if refused is not None:
            return refused
        product = y.producer()
        assert product is not None
        dimensions = rank(found.x)
        if dimensions is None or dimensions > MAX_RANK:
            return self.state.refuse(
                product, f"its activations have {dimensions or 'unknown'} dimensions, expected 1 to {MAX_RANK}"
            )
        try:
            matrix = self.state.weights.ternary(found.w, is_transposed=False)
            if matrix.scale > 0 and not is_positive_float32(found.factor * matrix.scale):
                return self.state.refuse(product, f"its scale times {found.factor:.3g} is none that float32 has")
        except NotPackableError as error:
            return self.state.refuse(product, str(error))
        return MatchResult()

    def rewrite(self, op: Any, y: ir.Value, **_: Any) -> ir.Value:
        found = _find(y)
        node = y.producer()
        assert found is not None
        assert node is not None
        product = made_by(plain(node.inputs[0]), "MatMul") if node.inputs[0] is not None else None
        assert product is not None
        matrix = self.state.weights.ternary(found.w, is_transposed=False)
        activation = Activation(found.x, "absorbed")
        return as_before(op, ternary_matmul(op, self.state, product, activation, matrix, found.factor), y)


def _find(y: ir.Value) -> Scaled | None:
    node = made_by(y, "Div")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    product = made_by(plain(node.inputs[0]), "MatMul")
    if product is None or product.inputs[0] is None or product.inputs[1] is None:
        return None
    x = rounded_codes(product.inputs[0])
    if x is None:
        return None
    factor = 1.0
    step: Step | None = None
    for item in _factors(node.inputs[1]):
        number = scalar(plain(item))
        if number is not None:
            factor *= number
            continue
        if step is not None or (step := token_step(item)) is None:
            return None
    if step != Step(x, is_inverse=True) or not factor > 0:
        return None
    return Scaled(x, product.inputs[1], 1.0 / factor)


def _factors(value: ir.Value) -> Iterator[ir.Value]:
    """What is multiplied, of at most a few; a step is one factor, although it may be a product itself."""
    waiting = [value]
    for _ in range(2 * MOST_FACTORS):
        if not waiting:
            return
        current = waiting.pop()
        product = made_by(plain(current), "Mul")
        if product is None or token_step(current) is not None:
            yield current
            continue
        waiting.extend(next(operands(product), ()))
