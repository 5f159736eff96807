"""Router, softmax, top-k and gated experts of ternary matrices -> one `mote::TernaryMoE`.

A pass over the graph and no rule: the number of experts is not fixed, and where their results meet can be any operator, while the
pattern of a rule has both.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter._context import TapeBuilder

from mote_export.onnx_import.emit import as_before, float32
from mote_export.onnx_import.experts import Expert, find_experts, matrices, records, tokens_behind
from mote_export.onnx_import.graph import scalar
from mote_export.onnx_import.routing import NoRoutingError, Router, Routing, find_router, find_routing, meeting_points
from mote_export.onnx_import.state import Rewritten, State
from mote_export.onnx_schemas import DOMAIN, VERSION
from mote_export.ops import NO_SHARED_EXPERT
from mote_export.packing import LAYOUT_VERSION

ACTIVATIONS = ("absorbed", "repeated", "new")  # the last one says most
MAX_EXPERTS = 256  # of docs/operator.md
MOST_POINTS = 16  # values at which the results of experts meet that are looked at


def fuse_experts(state: State, graph: ir.Graph) -> None:
    """Replaces the mixtures of a graph, in place; of one that stays `state` has the reason."""
    for group in _groups(find_experts(state, graph)):
        if len(group) < 2:
            continue
        try:
            value, router, routing = _understood(state, graph, group)
        except NoRoutingError as error:
            state.reasons[group[0].down] = f"its experts stay apart: {error}".rstrip(".")
            continue
        _replace(state, graph, [group[index] for index in routing.order], value, router, routing)


def _groups(experts: Sequence[Expert]) -> list[list[Expert]]:
    """Experts of the same tokens and sizes."""
    groups: dict[tuple[ir.Value, object], list[Expert]] = {}
    for expert in experts:
        sizes = tuple(
            node.attributes.get_int(name)
            for node in (expert.gate, expert.down)
            for name in ("in_features", "out_features")
        )
        groups.setdefault((tokens_behind(expert.x)[-1], sizes), []).append(expert)
    return list(groups.values())


def _understood(state: State, graph: ir.Graph, group: list[Expert]) -> tuple[ir.Value, Router, Routing]:
    """The nearest value that is a mixture of the experts.

    Raises:
        NoRoutingError: none is, with the reason of the last one.
    """
    if len(group) > MAX_EXPERTS:
        raise NoRoutingError(f"there are {len(group)}, at most {MAX_EXPERTS} make one operator")
    opset = state.weights.opset
    router = find_router(graph, group, opset)
    reason = NoRoutingError("their results do not meet in one value")
    for value, _ in zip(meeting_points(graph, group), range(MOST_POINTS), strict=False):
        try:
            return value, router, find_routing(group, router, value, opset)
        except NoRoutingError as error:
            reason = error
    raise reason


def _replace(
    state: State, graph: ir.Graph, experts: list[Expert], value: ir.Value, router: Router, routing: Routing
) -> None:
    last = value.producer()
    assert last is not None
    op = TapeBuilder()
    name = _name(state, experts)
    y = _node(state, op, experts, router, routing, name)
    result = as_before(op, y, value)
    result.dtype, result.shape = value.dtype, value.shape
    if routing.added is not None:
        result = op.Add(routing.added, result, _name=f"{name}/add")
        result.dtype, result.shape = value.dtype, value.shape
    result.name, value.name = value.name, None
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.insert_after(last, op.nodes)
    for expert in experts:
        for node in (expert.gate, expert.up, expert.down):
            del state.matmuls[node]


def _node(state: State, op: Any, experts: list[Expert], router: Router, routing: Routing, name: str) -> ir.Value:
    """The operator, and its entry in the report."""
    weights, options = state.weights, state.options
    gates, ups, downs = zip(*matrices(state, experts), strict=True)
    scales = [[_scale(node) for node in (expert.gate, expert.up, expert.down)] for expert in experts]
    packed = (
        weights.packed_gate_up(gates, ups, f"{name}.gate_up_packed"),
        weights.packed_down(downs, f"{name}.down_packed"),
    )
    gate_up_scale = weights.numbers(np.array(scales)[:, :2], f"{name}.gate_up_scale")
    down_scale = weights.numbers(np.array(scales)[:, 2], f"{name}.down_scale")
    y: ir.Value = op.op(
        "TernaryMoE",
        float32(op, routing.x),
        weights.numbers(router.weight, f"{name}.router"),
        packed[0],
        gate_up_scale,
        packed[1],
        down_scale,
        _domain=DOMAIN,
        _version=VERSION,
        _name=name,
        num_experts=len(experts),
        top_k=routing.top_k,
        normalize_topk=int(routing.normalize_topk),
        intermediate_size=gates[0].rows,
        activation="silu",
        packing=options.packing,
        layout_version=LAYOUT_VERSION,
        shared_format=NO_SHARED_EXPERT,
        shared_group_size=0,
    )
    y.dtype, y.shape = ir.DataType.FLOAT, routing.x.shape
    before = records(state, experts)
    state.experts.append(
        Rewritten(
            op="TernaryMoE",
            name=name,
            shape=(len(experts), gates[0].rows, gates[0].columns),
            bytes_before=sum(record.bytes_before for record in before),
            bytes_after=sum(value.const_value.nbytes for value in packed if value.const_value is not None),
            packing=options.packing,
            activations=max((record.activations for record in before), key=ACTIVATIONS.index),
            error=max(record.error for record in before),
        )
    )
    return y


def _scale(node: ir.Node) -> float:
    """Of a TernaryMatMul, with the factors that were found behind it."""
    number = scalar(node.inputs[2])
    assert number is not None
    return number


def _name(state: State, experts: list[Expert]) -> str:
    """What the names of the experts' weights begin with, or those of their nodes, up to a whole part of it."""
    nodes = [node for expert in experts for node in (expert.gate, expert.up, expert.down)]
    common = _common([state.matmuls[node][0].name for node in nodes]) or _common([node.name or "" for node in nodes])
    return f"{common}/TernaryMoE" if common else f"TernaryMoE_{experts[0].down.name}"


def _common(names: list[str]) -> str:
    parts = zip(*(re.findall(r"[^./]*[./]", name) for name in names), strict=False)
    return "".join(same[0] for same in itertools.takewhile(lambda same: len(set(same)) == 1, parts)).rstrip("./")
