"""Ours and the peers' in ONNX Runtime: how each builds a layer, and what of it is the shared expert."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from .graphs import BFLOAT16, FLOAT, UINT8, Graph, Layer
from .shapes import BLOCK, EXPERTS

LAYOUT_VERSION = 1
CODES_PER_LINE = {"2bit": 16, "1.6bit": 20, "int4": 8, "int8": 4, "bf16": 2}
OURS = "ours"
PEER = "peer"
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Operator:
    name: str
    label: str
    side: str  # OURS or PEER
    routed: str  # packing of ours, or which peer: "qmoe2", "qmoe4", "nbits2"
    shared: str  # "none", "bf16", "int8", "int4", "fp32"
    layer: Layer


def _lines(rows: int, inputs: int, packing: str) -> tuple[int, int, int]:
    return -(-rows // 16), -(-inputs // CODES_PER_LINE[packing]), 64


def _gate_up_lines(rows: int, inputs: int, packing: str) -> tuple[int, int, int, int]:
    blocks, lines, size = _lines(rows, inputs, packing)
    return blocks, 2, lines, size


def _shared_inputs(graph: Graph, shared: str) -> list[str]:
    """The four trailing inputs of docs/operator.md; '' is an absent one."""
    h, i = graph.shape.hidden, graph.shape.intermediate
    kind = "bf16" if shared == "bf16" else "codes"
    gate_up = graph.weight(kind, UINT8, _gate_up_lines(i, h, shared))
    down = graph.weight(kind, UINT8, _lines(h, i, shared))
    products = graph.shape.ffn_weights
    if shared == "bf16":
        graph.traffic.float_products += products
        return [gate_up, "", down]
    graph.traffic.integer_products += products
    groups = [-(-k // BLOCK) if shared == "int4" else 1 for k in (h, i)]
    gate_up_scale = graph.weight("bf16_scales", BFLOAT16, (-(-i // 16), 2, groups[0], 16))
    down_scale = graph.weight("bf16_scales", BFLOAT16, (-(-h // 16), groups[1], 16))
    return [gate_up, gate_up_scale, down, down_scale]


def ternary_moe(graph: Graph, x: str, y: str, *, packing: str, shared: str) -> None:
    """One mote::TernaryMoE node."""
    h, i = graph.shape.hidden, graph.shape.intermediate
    inputs = [
        x,
        graph.constant(graph.router(EXPERTS)),
        graph.weight("codes", UINT8, (EXPERTS, *_gate_up_lines(i, h, packing)), EXPERTS),
        graph.constant(np.full((EXPERTS, 2), h**-0.5, np.float32)),
        graph.weight("codes", UINT8, (EXPERTS, *_lines(h, i, packing)), EXPERTS),
        graph.constant(np.full((EXPERTS,), i**-0.5, np.float32)),
    ]
    graph.traffic.integer_products += graph.shape.ffn_weights
    if shared != "none":
        inputs += _shared_inputs(graph, shared)
    graph.add(
        "TernaryMoE", inputs, y, "mote",
        num_experts=EXPERTS, top_k=1, normalize_topk=0, intermediate_size=i, activation="silu", packing=packing,
        layout_version=LAYOUT_VERSION, shared_format=shared, shared_group_size=BLOCK if shared == "int4" else 0,
    )  # fmt: skip


def qmoe(graph: Graph, x: str, y: str, *, bits: int) -> None:
    """The router as MatMul, and one com.microsoft::QMoE node: SwiGLU with gate and up interleaved, scales of blocks."""
    h, i = graph.shape.hidden, graph.shape.intermediate
    router = graph.constant(np.ascontiguousarray(graph.router(EXPERTS).T))
    logits = graph.add("MatMul", [x, router])
    fc1 = graph.weight("codes", UINT8, (EXPERTS, 2 * i, h * bits // 8), EXPERTS)
    fc1_scales = graph.weight("f32", FLOAT, (EXPERTS, 2 * i, h // BLOCK), EXPERTS)
    fc2 = graph.weight("codes", UINT8, (EXPERTS, h, i * bits // 8), EXPERTS)
    fc2_scales = graph.weight("f32", FLOAT, (EXPERTS, h, i // BLOCK), EXPERTS)
    graph.traffic.integer_products += graph.shape.ffn_weights
    graph.add(
        "QMoE", [x, logits, fc1, fc1_scales, "", fc2, fc2_scales], y, MICROSOFT,
        k=1, expert_weight_bits=bits, block_size=BLOCK, activation_type="swiglu", swiglu_fusion=1,
        activation_alpha=1.0, activation_beta=0.0, normalize_routing_weights=0, accuracy_level=4,
    )  # fmt: skip


def _nbits_matmul(graph: Graph, x: str, inputs: int, outputs: int, bits: int, y: str = "") -> str:
    weight = graph.weight("codes", UINT8, (outputs, inputs // BLOCK, BLOCK * bits // 8))
    scales = graph.weight("f32", FLOAT, (outputs, inputs // BLOCK))
    graph.traffic.integer_products += inputs * outputs
    return graph.add(
        "MatMulNBits", [x, weight, scales], y, MICROSOFT,
        K=inputs, N=outputs, bits=bits, block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip


def _float_matmul(graph: Graph, x: str, inputs: int, outputs: int, y: str = "") -> str:
    weight = graph.weight("f32", FLOAT, (inputs, outputs))
    graph.traffic.float_products += inputs * outputs
    return graph.add("MatMul", [x, weight], y)


def dense_ffn(graph: Graph, x: str, y: str, *, bits: int) -> None:
    """gate, up, SiLU, product, down; `bits` 32 is MatMul in float32, else MatMulNBits.

    With 2 bits this is peer (c): one expert without any routing, which is in the peer's favour.
    """
    h, i = graph.shape.hidden, graph.shape.intermediate
    matmul = _float_matmul if bits == 32 else partial(_nbits_matmul, bits=bits)
    gate = matmul(graph, x, h, i)
    up = matmul(graph, x, h, i)
    silu = graph.add("Mul", [gate, graph.add("Sigmoid", [gate])])  # ONNX Runtime makes one kernel of the two
    matmul(graph, graph.add("Mul", [silu, up]), i, h, y=y)


def with_shared(graph: Graph, x: str, y: str, *, routed: Layer, shared: Layer) -> None:
    routed(graph, x, f"{y}_routed")
    shared(graph, x, f"{y}_shared")
    graph.add("Add", [f"{y}_shared", f"{y}_routed"], y)


_PEERS: dict[str, tuple[str, Layer]] = {
    "qmoe2": ("QMoE 2-bit", partial(qmoe, bits=2)),
    "qmoe4": ("QMoE 4-bit", partial(qmoe, bits=4)),
    "nbits2": ("MatMulNBits 2-bit, one expert", partial(dense_ffn, bits=2)),
}
_SHARED: dict[str, Layer] = {"int4": partial(dense_ffn, bits=4), "fp32": partial(dense_ffn, bits=32)}


def operators() -> Iterator[Operator]:
    for shared in ("none", "int4", "int8", "bf16"):
        for packing in ("2bit", "1.6bit"):
            suffix = "" if shared == "none" else f", shared {shared}"
            name = f"ours-{packing}-{shared}"
            layer = partial(ternary_moe, packing=packing, shared=shared)
            yield Operator(name, f"TernaryMoE {packing}{suffix}", OURS, packing, shared, layer)
    for key, (label, routed) in _PEERS.items():
        yield Operator(f"{key}-none", label, PEER, key, "none", routed)
        for shared, dense in _SHARED.items():
            both = partial(with_shared, routed=routed, shared=dense)
            yield Operator(f"{key}-{shared}", f"{label} + shared {shared}", PEER, key, shared, both)
