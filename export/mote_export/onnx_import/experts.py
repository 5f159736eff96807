"""Gated feed-forward layers of three `mote::TernaryMatMul` nodes, down(silu(gate(x)) * up(x)): the experts of a mixture."""

from dataclasses import dataclass

import onnx_ir as ir

from mote_export.onnx_import.activations import fake_quantized
from mote_export.onnx_import.graph import casts_to, made_by, operands, plain, width
from mote_export.onnx_import.state import Rewritten, State
from mote_export.onnx_import.weights import TernaryMatrix

ROW_MOVES = ("Reshape", "Gather", "GatherND", "Squeeze", "Unsqueeze", "Cast", "Identity", "Flatten")


@dataclass(frozen=True, eq=False)
class Expert:
    """One feed-forward layer.

    Attributes:
        x: what gate and up are given, [..., H].
        y: what down gives, [..., H].
        gate, up, down: their nodes.
    """

    x: ir.Value
    y: ir.Value
    gate: ir.Node
    up: ir.Node
    down: ir.Node


def find_experts(state: State, graph: ir.Graph) -> list[Expert]:
    """Those of a graph, in its order."""
    found = []
    for node in graph:
        if node in state.matmuls and (expert := _expert(state, node)) is not None:
            found.append(expert)
    return found


def _expert(state: State, down: ir.Node) -> Expert | None:
    assert down.inputs[0] is not None
    product = made_by(plain(down.inputs[0]), "Mul")
    if product is None:
        return None
    for activated, linear in operands(product):
        gate, up = _silu(activated), plain(linear).producer()
        if gate is None or up is None or up not in state.matmuls or gate not in state.matmuls:
            continue
        x = gate.inputs[0]
        if (
            x is not None
            and x is up.inputs[0]
            and _shape(state, gate) == _shape(state, up) == _shape(state, down)[::-1]
        ):
            return Expert(x, down.outputs[0], gate, up, down)
    return None


def _shape(state: State, node: ir.Node) -> tuple[int, int]:
    matrix = state.matmuls[node][0]
    return matrix.rows, matrix.columns


def _silu(value: ir.Value) -> ir.Node | None:
    """The node whose result v a value is silu of: v * sigmoid(v), or Swish."""
    value = plain(value)
    swish = made_by(value, "Swish")
    if swish is not None and swish.inputs[0] is not None and swish.attributes.get_float("alpha", 1.0) == 1.0:
        return plain(swish.inputs[0]).producer()
    product = made_by(value, "Mul")
    for sigmoid, linear in () if product is None else operands(product):
        node = made_by(plain(sigmoid), "Sigmoid")
        if node is not None and node.inputs[0] is not None and plain(node.inputs[0]) is plain(linear):
            return plain(linear).producer()
    return None


def tokens_behind(value: ir.Value) -> list[ir.Value]:
    """Where the tokens of a value come from, as long as they keep their width: itself, and values behind reshapes, gathers, casts.

    Where they were rounded to 8 bits on the way, it is those from before, which the router sees.
    """
    chain = [value]
    hidden = width(value)
    is_rounded = False
    while True:
        before = None if is_rounded else fake_quantized(chain[-1])
        if before is not None:
            chain, is_rounded = [before], True
        node = made_by(chain[-1], *ROW_MOVES)
        if node is None or node.inputs[0] is None or width(node.inputs[0]) != hidden or not casts_to(node):
            return chain
        chain.append(node.inputs[0])


def matrices(state: State, experts: list[Expert]) -> list[tuple[TernaryMatrix, TernaryMatrix, TernaryMatrix]]:
    """gate, up and down of each."""
    return [
        (state.matmuls[expert.gate][0], state.matmuls[expert.up][0], state.matmuls[expert.down][0])
        for expert in experts
    ]


def records(state: State, experts: list[Expert]) -> list[Rewritten]:
    """What was said of their nodes so far."""
    return [state.matmuls[node][1] for expert in experts for node in (expert.gate, expert.up, expert.down)]
