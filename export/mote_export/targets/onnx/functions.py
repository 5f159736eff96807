"""The operators of domain `mote` written in standard ONNX operators, as functions of the model (`mote-export --portable`).

A function that lies in the file defines what a node of its name computes. A runtime without the plugin puts the body in the node's
place; one with the plugin knows the node and keeps it. So a portable file runs anywhere, and fast where the plugin is registered.

A body computes docs/operator.md step by step, with its rounding: integer products are `MatMulInteger`, which is exact; sums whose
order is specified are `CumSum`, which adds in order; `exp` is the specified polynomial. So a result has the operator's bits. The
one exception is a shared expert in `bf16`: its sums have no order that a standard operator keeps, and are a `MatMul` in float32.

Weights stay packed in the file: unpacking is part of the body, depends on nothing but initializers, and is folded by a runtime that
optimizes while it loads the model; one that does not unpacks them in every run. Bodies are written for the settings that decide
their structure (experts, formats); sizes come from inputs and attributes, so layers of all sizes share one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mote_export.onnx_schemas import DOMAIN, TERNARY_MATMUL, TERNARY_MOE, Operator
from mote_export.ops import HORNER
from mote_export.packing import int4, one_six_bit, two_bit
from mote_export.packing.lines import LANES as BYTES_OF_A_ROW
from mote_export.packing.lines import ROWS

LANES = 16  # of the router's sums
# exp of docs/operator.md: 2^n is looked up, as ONNX has no operator that makes a float of its bits.
LEAST_POWER, GREATEST_POWER = -126, 127
# Of activations: uint8 beside int8 weights is the fastest product everywhere, and exact for ternary ones.
ZERO_POINT = 128
FLOAT_MAX = float(np.finfo(np.float32).max)
# codes[byte, plane]: the value of each input that a byte of a packed line holds, less an offset that the product undoes
TERNARY_CODES = {
    "2bit": (((np.arange(256)[:, None] >> two_bit.SHIFTS) & 3) - two_bit.ZERO_CODE).astype(np.int8),
    "1.6bit": np.ascontiguousarray(one_six_bit.DIGITS.T),
}
INT4_CODES = ((np.arange(256)[:, None] >> int4.SHIFTS) & 15).astype(np.uint8)
INT8_CODES = (np.arange(256, dtype=np.uint8) ^ 0x80)[:, None]  # unsigned, which is exact also where products saturate


def add_functions(model: ir.Model) -> None:
    """Defines every operator of domain `mote` that `model` uses, in place.

    Raises:
        ValueError: nodes of one operator differ in a setting that decides the structure of its body.
    """
    opset = model.opset_imports[""]
    for operator, write, structural in (
        (TERNARY_MOE, ternary_moe, MOE_STRUCTURE),
        (TERNARY_MATMUL, ternary_matmul, MATMUL_STRUCTURE),
    ):
        nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, operator.name)]
        if not nodes:
            continue
        settings = [{name: node.attributes[name].value for name in structural} for node in nodes]
        if any(found != settings[0] for found in settings):
            raise ValueError(
                f"nodes of {operator.name} differ in {', '.join(structural)}, which one function cannot define"
            )
        function = ir.from_proto(write(operator, opset, **settings[0]))
        model.functions[function.identifier()] = function


MOE_STRUCTURE = ("num_experts", "top_k", "normalize_topk", "packing", "shared_format", "shared_group_size")
MATMUL_STRUCTURE = ("packing",)


class _Body:
    """Nodes of a function, written one after another; a value is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Appends a node with one output, whose name it returns."""
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(self, op_type: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Appends a node with several outputs."""
        name = f"{op_type}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, **attributes))
        return names

    def constant(self, value: NDArray[Any]) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = self("Constant", value=numpy_helper.from_array(value))
        return self._constants[key]

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def attribute(self, name: str) -> str:
        """An integer attribute of the function, int64 [1]."""
        scalar = self("Constant")
        self.nodes[-1].attribute.add(name="value_int", type=onnx.AttributeProto.INT, ref_attr_name=name)
        return self("Reshape", scalar, self.integers(1))

    def size(self, value: str, axis: int) -> str:
        """A dimension, int64 [1]."""
        return self("Shape", value, start=axis, end=axis + 1)

    def join(self, *parts: str) -> str:
        """Dimensions [1] each to a shape."""
        return self("Concat", *parts, axis=0)

    def at(self, value: str, index: int, axis: int) -> str:
        """value[..., index, ...]: the axis is dropped."""
        return self("Gather", value, self.constant(np.array(index, np.int64)), axis=axis)

    def first(self, value: str, count: str, axis: int) -> str:
        return self("Slice", value, self.integers(0), count, self.integers(axis))

    def sum_in_order(self, value: str, axis: int) -> str:
        """The sum from index 0 upwards; the axis is dropped."""
        return self.at(self("CumSum", value, self.constant(np.array(axis, np.int64))), -1, axis)

    def reduce(self, op_type: str, rows: str) -> str:
        """[T, n] to [T, 1]."""
        # ONNX Runtime leaves [0, n] as it is (seen in 1.31), which cutting to a column mends.
        return self.first(self(op_type, rows, self.integers(-1)), self.integers(1), axis=1)

    def is_finite(self, rows: str) -> str:
        """bool [T, 1]: whether all values of a row of [T, n] are finite."""
        small = self("LessOrEqual", self("Abs", rows), self.number(FLOAT_MAX))  # false for NaN
        least = self.reduce("ReduceMin", self("Cast", small, to=onnx.TensorProto.FLOAT))
        return self("Greater", least, self.number(0.5))

    def finite_or_zero(self, rows: str) -> tuple[str, str]:
        """Rows of which the others are 0, so that nothing that follows meets NaN, and which these are, bool [T, 1]."""
        good = self.is_finite(rows)
        return self("Where", good, rows, self.number(0.0)), good


def ternary_matmul(operator: Operator, opset: int, packing: str) -> onnx.FunctionProto:
    """The function `mote::TernaryMatMul`."""
    body = _Body()
    in_features, out_features = body.attribute("in_features"), body.attribute("out_features")
    shape = body("Shape", "x")
    rows = body("Reshape", "x", body.join(body.integers(-1), in_features))
    tokens, good = body.finite_or_zero(rows)
    codes, step = _quantize(body, tokens)
    weight = _unpack(body, "packed", TERNARY_CODES[packing], in_features, out_features)
    # As a product of a column, it would be found by ONNX Runtime's MatMulIntegerToFloat, which rounds otherwise.
    factor = body("Unsqueeze", body("Mul", body("Squeeze", step, body.integers(1)), "scale"), body.integers(1))
    y = _with_nan(body, body("Mul", _product(body, codes, weight), factor), good)
    leading = body("Slice", shape, body.integers(0), body.integers(-1))
    body.nodes.append(helper.make_node("Reshape", [y, body.join(leading, out_features)], ["y"], name="y", allowzero=1))
    return _function(operator, opset, body)


def ternary_moe(
    operator: Operator,
    opset: int,
    num_experts: int,
    top_k: int,
    normalize_topk: int,
    packing: str,
    shared_format: str,
    shared_group_size: int,
) -> onnx.FunctionProto:
    """The function `mote::TernaryMoE`; comments name the steps of docs/operator.md."""
    body = _Body()
    hidden_size, intermediate_size = body.size("router", 1), body.attribute("intermediate_size")
    rows = body("Reshape", "x", body.join(body.integers(-1), hidden_size))
    tokens, good_tokens = body.finite_or_zero(rows)
    codes, step = _quantize(body, tokens)  # 1
    logits, good_logits = body.finite_or_zero(_router_logits(body, tokens, hidden_size, num_experts))  # 2
    expert, gate = _select(body, logits, top_k, normalize_topk)  # 3, 4
    y = _routed(body, codes, step, expert, gate, num_experts, top_k, packing, hidden_size, intermediate_size)  # 5, 7
    if shared_format != "none":
        shared = _shared(body, shared_format, shared_group_size, tokens, hidden_size, intermediate_size)  # 6
        y = body("Add", shared, y)
    y = _with_nan(body, y, body("And", good_tokens, good_logits))
    body.nodes.append(helper.make_node("Reshape", [y, body("Shape", "x")], ["y"], name="y", allowzero=1))
    return _function(operator, opset, body)


def _function(operator: Operator, opset: int, body: _Body) -> onnx.FunctionProto:
    return helper.make_function(
        DOMAIN,
        operator.name,
        [item.name for item in operator.inputs],
        ["y"],
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes=[item.name for item in operator.attributes],
        doc_string=operator.doc,
    )


def _with_nan(body: _Body, y: str, good: str) -> str:
    """NaN where a row is not good; any other NaN becomes that one, 0x7fc00000."""
    nan = body.number(np.nan)
    return body("Where", body("And", good, body("Not", body("IsNaN", y))), y, nan)


def _quantize(body: _Body, rows: str) -> tuple[str, str]:
    """Codes uint8 [T, n], which are ZERO_POINT too great, and steps [T, 1]."""
    greatest = body.reduce("ReduceMax", body("Abs", rows))
    bounded = body("Max", greatest, body.number(1e-5))
    scaled = body("Round", body("Mul", rows, body("Div", body.number(127.0), bounded)))
    codes = body("Cast", body("Add", scaled, body.number(ZERO_POINT)), to=onnx.TensorProto.UINT8)
    return codes, body("Div", bounded, body.number(127.0))


def _product(body: _Body, codes: str, weight: str, weight_zero_point: str = "") -> str:
    """float(acc): codes of activations [..., K] times a weight [..., K, N]."""
    zero_point = body.constant(np.array(ZERO_POINT, np.uint8))
    inputs = [codes, weight, zero_point, weight_zero_point]
    product = body("MatMulInteger", *(inputs if weight_zero_point else inputs[:-1]))
    return body("Cast", product, to=onnx.TensorProto.FLOAT)


def _bytes(body: _Body, lines: str, table: NDArray[Any]) -> str:
    """table[byte] for the bytes of lines [nb, kb, 64]: [nb, kb, 16, bytes of a row, values of a byte]."""
    values = body("Gather", body.constant(table), body("Cast", lines, to=onnx.TensorProto.INT32), axis=0)
    return body("Reshape", values, body.integers(0, 0, ROWS, BYTES_OF_A_ROW, table.shape[1]))


def _unpack(body: _Body, lines: str, table: NDArray[Any], inputs: str, outputs: str) -> str:
    """Lines [nb, kb, 64] (docs/layout.md) to a weight [K, N], for codes that fill a byte plane by plane."""
    values = body("Transpose", _bytes(body, lines, table), perm=[1, 4, 3, 0, 2])
    return _cut(body, values, inputs, outputs)


def _cut(body: _Body, values: str, inputs: str, outputs: str) -> str:
    """[kb, ..., nb, 16] to [K, N], without what pads them."""
    blocks = body.size(values, -2)
    columns = body("Mul", blocks, body.integers(ROWS))
    matrix = body("Reshape", values, body.join(body.integers(-1), columns))
    return body("Slice", matrix, body.integers(0, 0), body.join(inputs, outputs), body.integers(0, 1))


def _router_logits(body: _Body, tokens: str, hidden_size: str, num_experts: int) -> str:
    """[T, E]: sums in 16 lanes, which are folded in the end."""
    steps = body("Div", body("Add", hidden_size, body.integers(LANES - 1)), body.integers(LANES))
    padding = body("Sub", body("Mul", steps, body.integers(LANES)), hidden_size)
    pads = body.join(body.integers(0, 0, 0), padding)

    def lanes(rows: str, *shape: int) -> str:
        padded = body("Pad", rows, pads, body.number(0.0))
        return body("Reshape", padded, body.join(body.integers(*shape), steps, body.integers(LANES)))

    products = body("Mul", lanes(tokens, -1, 1), lanes("router", 1, num_experts))
    total = body.sum_in_order(products, axis=2)
    for _ in range(LANES.bit_length() - 1):
        total = body("Add", *body.several("Split", 2, total, axis=-1, num_outputs=2))
    return body("Squeeze", total, body.integers(-1))


def _select(body: _Body, logits: str, top_k: int, normalize_topk: int) -> tuple[str, str]:
    """Experts int64 [T, k] in descending order of the logits, and their gates [T, k]."""
    greatest = body.reduce("ReduceMax", logits)
    exponential = _exp(body, body("Sub", logits, greatest))
    last = body.integers(-1)
    probability = body("Div", exponential, body("Unsqueeze", body.sum_in_order(exponential, axis=1), last))
    expert = body.several("TopK", 2, logits, body.integers(top_k), axis=-1, largest=1, sorted=1)[1]
    gate = body("GatherElements", probability, expert, axis=-1)
    if normalize_topk:
        gate = body("Div", gate, body("Unsqueeze", body.sum_in_order(gate, axis=1), last))
    return expert, gate


def _routed(
    body: _Body,
    codes: str,
    step: str,
    expert: str,
    gate: str,
    num_experts: int,
    top_k: int,
    packing: str,
    hidden_size: str,
    intermediate_size: str,
) -> str:
    """R, [T, H]. The tokens of an expert are gathered, so that no expert computes one that it was not selected for.

    Between the products all experts' rows lie in one matrix, expert after expert.
    """
    table = TERNARY_CODES[packing]
    pairs, counts = list[str](), list[str]()
    gates, ups = list[str](), list[str]()
    for index in range(num_experts):
        hit = body("Equal", expert, body.constant(np.array(index, np.int64)))
        pairs.append(body("NonZero", hit))  # [2, n]: token, rank
        counts.append(body.size(pairs[-1], 1))
        rows = body("Gather", codes, body.at(pairs[-1], 0, 0), axis=0)
        lines = body.at("gate_up_packed", index, 0)
        for half, products in enumerate((gates, ups)):
            weight = _unpack(body, body.at(lines, half, 1), table, hidden_size, intermediate_size)
            products.append(_product(body, rows, weight))
    pair = body("Transpose", body("Concat", *pairs, axis=1), perm=[1, 0])  # [T * k, 2]
    chosen = body("GatherND", expert, pair)  # [T * k]
    row_step = body("Gather", step, body.at(pair, 0, 1), axis=0)  # [T * k, 1]
    scales = body("Gather", "gate_up_scale", chosen, axis=0)  # [T * k, 2]

    def scaled(products: Sequence[str], steps: str, scale: str) -> str:
        return body("Mul", body("Concat", *products, axis=0), body("Mul", steps, scale))

    gate_scale, up_scale = body.several("Split", 2, scales, axis=-1, num_outputs=2)
    hidden, good = _hidden(body, scaled(gates, row_step, gate_scale), scaled(ups, row_step, up_scale))
    hidden_codes, hidden_step = _quantize(body, hidden)
    parts = [hidden_codes]
    if num_experts > 1:
        parts = body.several("Split", num_experts, hidden_codes, body.join(*counts), axis=0)
    downs = [
        _product(body, part, _unpack(body, body.at("down_packed", index, 0), table, intermediate_size, hidden_size))
        for index, part in enumerate(parts)
    ]
    down_scale = body("Unsqueeze", body("Gather", "down_scale", chosen, axis=0), body.integers(-1))
    contribution = body("Where", good, scaled(downs, hidden_step, down_scale), body.number(np.nan))
    empty = body("ConstantOfShape", body.join(body("Shape", expert), hidden_size))
    by_rank = body("ScatterND", empty, pair, contribution)  # [T, k, H]
    weighted = body("Mul", body("Unsqueeze", gate, body.integers(-1)), by_rank)
    return body.at(weighted, 0, 1) if top_k == 1 else body.sum_in_order(weighted, axis=1)


def _hidden(body: _Body, gate: str, up: str) -> tuple[str, str]:
    """h = silu(gate) * up, with 0 in the rows that are not finite, and which are, bool [T, 1]."""
    silu = body("Div", gate, body("Add", _exp(body, body("Neg", gate)), body.number(1.0)))
    return body.finite_or_zero(body("Mul", silu, up))


def _exp(body: _Body, value: str) -> str:
    v = value
    for compare, bound in (("Greater", -87.0), ("Less", 88.0)):  # NaN becomes a number, as an index must be one
        v = body("Where", body(compare, v, body.number(bound)), v, body.number(bound))
    n = body("Round", body("Mul", v, body.number(1.44269504)))
    r = body("Sub", v, body("Mul", n, body.number(0.693359375)))
    r = body("Sub", r, body("Mul", n, body.number(-2.12194440e-4)))
    p = body.number(HORNER[0])
    for coefficient in HORNER[1:]:
        p = body("Add", body("Mul", p, r), body.number(coefficient))
    p = body("Mul", p, body("Mul", r, r))
    p = body("Add", body("Add", p, r), body.number(1.0))
    powers = np.exp2(np.arange(LEAST_POWER, GREATEST_POWER + 1)).astype(np.float32)
    index = body("Cast", body("Sub", n, body.number(LEAST_POWER)), to=onnx.TensorProto.INT32)
    return body("Mul", p, body("Gather", body.constant(powers), index, axis=0))


def _shared(
    body: _Body, shared_format: str, group_size: int, tokens: str, hidden_size: str, intermediate_size: str
) -> str:
    """S, [T, H]."""
    matrix = _SHARED_MATRICES[shared_format]

    def half(index: int) -> str:
        scale = body.at("shared_gate_up_scale", index, 1) if shared_format in SCALED_FORMATS else ""
        lines = body.at("shared_gate_up", index, 1)
        return matrix(body, tokens, lines, scale, hidden_size, intermediate_size, group_size)

    hidden, good = _hidden(body, half(0), half(1))
    y = matrix(body, hidden, "shared_down", "shared_down_scale", intermediate_size, hidden_size, group_size)
    return body("Where", good, y, body.number(np.nan))


def _bf16_matrix(body: _Body, rows: str, lines: str, _: str, inputs: str, outputs: str, group_size: int) -> str:
    """A product in float32, whose sums run in the runtime's order."""
    pairs = body("Reshape", lines, body.integers(0, 0, ROWS, BYTES_OF_A_ROW // 2, 2))
    low, high = body.several("Split", 2, body("Cast", pairs, to=onnx.TensorProto.INT32), axis=-1, num_outputs=2)
    bits = body("Add", body("Mul", high, body.constant(np.array(256, np.int32))), low)
    values = body("Gather", _bf16_values(body), bits, axis=0)  # [nb, kb, 16, 2, 1]
    return body("MatMul", rows, _cut(body, body("Transpose", values, perm=[1, 3, 4, 0, 2]), inputs, outputs))


def _bf16_values(body: _Body) -> str:
    """The float32 of each bit pattern of a bfloat16, [65536]; NaN, which no undamaged file has, becomes infinity.

    From tables of its bytes, which are a hundredth of that: sign and seven bits of the exponent in the high one.
    """
    byte = np.arange(256)
    sign, exponent = np.where(byte < 128, 1.0, -1.0), byte & 127
    normal = np.where(exponent == 0, 0.0, sign * np.exp2(2.0 * exponent - 127))
    tiny = np.where(exponent == 0, sign * 2.0**-133, 0.0)  # the low byte counts in these where the exponent is 0 or 1
    mantissa = np.where(byte < 128, 1.0, 2.0) * (1 + (byte & 127) / 128)
    high = [body.constant(table.astype(np.float32)[:, None]) for table in (normal, tiny)]
    low = [body.constant(table.astype(np.float32)[None]) for table in (mantissa, byte)]
    table = body("Add", *(body("Mul", *pair) for pair in zip(high, low, strict=True)))
    return body("Reshape", table, body.integers(-1))


def _int8_matrix(body: _Body, rows: str, lines: str, scale: str, inputs: str, outputs: str, group_size: int) -> str:
    codes, step = _quantize(body, rows)
    weight = _unpack(body, lines, INT8_CODES, inputs, outputs)
    product = _product(body, codes, weight, body.constant(np.array(128, np.uint8)))
    return body("Mul", body("Mul", product, _scales(body, scale, outputs)), step)


def _int4_matrix(body: _Body, rows: str, lines: str, scale: str, inputs: str, outputs: str, group_size: int) -> str:
    codes, step = _quantize(body, rows)
    weight = _unpack(body, lines, INT4_CODES, inputs, outputs)
    scales = _scales(body, scale, outputs)  # [G, N]
    groups, size = body.size(scales, 0), body.integers(group_size)
    padding = body("Sub", body("Mul", groups, size), inputs)  # the last group may be shorter
    none = body.integers(0)
    zeros = [body.constant(np.array(zero, np.uint8)) for zero in (ZERO_POINT, int4.OFFSET)]
    codes = body("Pad", codes, body.join(none, none, none, padding), zeros[0])
    weight = body("Pad", weight, body.join(none, none, padding, none), zeros[1])
    codes = body("Transpose", body("Reshape", codes, body.join(body.integers(-1), groups, size)), perm=[1, 0, 2])
    weight = body("Reshape", weight, body.join(groups, size, outputs))
    product = _product(body, codes, weight, zeros[1])  # [G, T, N]
    total = body.sum_in_order(body("Mul", product, body("Unsqueeze", scales, body.integers(1))), axis=0)
    return body("Mul", total, step)


def _scales(body: _Body, packed: str, outputs: str) -> str:
    """bfloat16 [nb, G, 16] to float32 [G, N]."""
    values = body("Transpose", body("Cast", packed, to=onnx.TensorProto.FLOAT), perm=[1, 0, 2])
    matrix = body("Reshape", values, body.integers(0, -1))
    return body("Slice", matrix, body.integers(0), outputs, body.integers(1))


# A matrix of the shared expert: (rows float32 [T, K], packed lines [nb, kb, 64], scales [nb, G, 16], K, N, group) to [T, N].
_SHARED_MATRICES: dict[str, Callable[[_Body, str, str, str, str, str, int], str]] = {
    "bf16": _bf16_matrix,
    "int8": _int8_matrix,
    "int4": _int4_matrix,
}
SCALED_FORMATS = ("int8", "int4")
