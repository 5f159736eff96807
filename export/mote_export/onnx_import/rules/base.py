"""What all rules have in common."""

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRuleClassBase

from mote_export.onnx_import.graph import FLOATS
from mote_export.onnx_import.state import State


class TernaryRule(RewriteRuleClassBase):
    """A rule with the state of the rewriting that it is part of."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

    def refuse_place(self, context: MatchContext, y: ir.Value) -> MatchResult | None:
        """Where and of what type no rule applies; None elsewhere."""
        node = y.producer()
        assert node is not None
        if isinstance(context.graph_or_function, ir.Function):
            return self.state.refuse(node, "it is part of a function, which has no weights of its own")
        if y.dtype not in FLOATS:
            return self.state.refuse(node, f"its result is of type {y.dtype}, expected a float type")
        return None
