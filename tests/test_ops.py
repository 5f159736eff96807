"""L2: both operators' torch references against docs/operator.md written out in loops over single float32 numbers."""

import itertools
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from operator_cases import (
    CASES,
    MATMUL_CASES,
    MOE_CASES,
    QUANTIZED_CASES,
    SHARED,
    TORCH_NAMES,
    Array,
    Case,
    Layer,
    assert_same_bits,
    random_layer,
    random_matmul,
    random_quantized,
    random_tokens,
    reference,
    tensor,
)

import mote_export.ops
from mote_export.packing import PACKINGS, SHARED_FORMATS, unpack_gate_up, unpack_scales

F = np.float32
NAN = np.uint32(0x7FC00000).view(np.float32)
Row = Sequence[np.float32]


def exp(v: np.float32) -> np.float32:
    v = v if v > F(-87) else F(-87)
    v = v if v < F(88) else F(88)
    n = np.rint(v * F(1.44269504))
    r = v - n * F(0.693359375)
    r = r - n * F(-2.12194440e-4)
    z = r * r
    p = F(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + F(c)
    p = p * z
    p = p + r
    p = p + F(1)
    return p * F(struct.unpack("<f", struct.pack("<I", (int(n) + 127) << 23))[0])


def finite(row: Row) -> bool:
    return all(math.isfinite(v) for v in row)


def quantize(row: Row) -> tuple[list[int], np.float32]:
    m = max(max(abs(v) for v in row), F(1e-5))
    s, d = F(127) / m, m / F(127)
    return [int(max(min(np.rint(v * s), 127), -128)) for v in row], d


def ternary_matrix(row: Row, t: Array, scale: np.float32) -> list[np.float32]:
    q, d = quantize(row)
    return [F(sum(int(w) * a for w, a in zip(line, q, strict=True))) * (d * scale) for line in t]


def shared_matrix(row: Row, values: Array, scale: Array | None, form: str, group: int) -> list[np.float32]:
    if form == "bf16":
        w = (values.astype(np.uint32) << 16).view(np.float32)
        result = []
        for line in w:
            sums = [F(0), F(0)]
            for k, v in enumerate(row):
                sums[k % 2] = sums[k % 2] + line[k] * v
            result.append(sums[0] + sums[1])
        return result
    assert scale is not None
    q, d = quantize(row)
    result = []
    for line, scales in zip(values, scale, strict=True):
        products = [int(w) * a for w, a in zip(line, q, strict=True)]
        size = group if form == "int4" else len(products)
        a = F(0)
        for i, w in enumerate(scales):
            a = a + F(sum(products[i * size : (i + 1) * size])) * w
        result.append(a * d)
    return result


def activate(gate: Row, up: Row) -> list[np.float32]:
    return [(g / (F(1) + exp(-g))) * u for g, u in zip(gate, up, strict=True)]


def router_logit(row: Row, weights: Array) -> np.float32:
    lanes = [F(0)] * 16
    for k, v in enumerate(row):
        lanes[k % 16] = lanes[k % 16] + v * weights[k]
    for half in (8, 4, 2, 1):
        lanes = [lanes[j] + lanes[j + half] for j in range(half)]
    return lanes[0]


def gates(logits: Row, top_k: int, normalize: int) -> list[tuple[int, np.float32]]:
    powers = [exp(v - max(logits)) for v in logits]
    total = powers[0]
    for p in powers[1:]:
        total = total + p
    chosen = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    p = [powers[i] / total for i in chosen]
    if normalize:
        total = p[0]
        for v in p[1:]:
            total = total + v
        p = [v / total for v in p]
    return list(zip(chosen, p, strict=True))


class Plain:
    """The layer with its weights unpacked, and one token at a time."""

    def __init__(self, layer: Layer) -> None:
        a, w = layer.attributes, layer.weights
        self.a, self.w = a, w
        H, I = layer.hidden_size, int(a["intermediate_size"])  # noqa: E741
        packing = PACKINGS[str(a["packing"])]
        self.gate, self.up = unpack_gate_up(w["gate_up_packed"], I, H, packing)
        self.down = packing.unpack(w["down_packed"], H, I)
        self.form = str(a["shared_format"])
        if self.form == "none":
            return
        shared = SHARED_FORMATS[self.form].packing
        self.shared = [*unpack_gate_up(w["shared_gate_up"], I, H, shared), shared.unpack(w["shared_down"], H, I)]
        self.scales: list[Array | None] = [None, None, None]
        if "shared_down_scale" in w:
            both, down = tensor(w["shared_gate_up_scale"]), tensor(w["shared_down_scale"])
            parts = (both[:, 0], I), (both[:, 1], I), (down, H)
            self.scales = [unpack_scales(part, rows).numpy() for part, rows in parts]

    def expert(self, row: Row, e: int) -> list[np.float32]:
        gate = ternary_matrix(row, self.gate[e], self.w["gate_up_scale"][e, 0])
        up = ternary_matrix(row, self.up[e], self.w["gate_up_scale"][e, 1])
        h = activate(gate, up)
        return ternary_matrix(h, self.down[e], self.w["down_scale"][e]) if finite(h) else [NAN] * len(row)

    def shared_expert(self, row: Row) -> list[np.float32]:
        group = int(self.a["shared_group_size"])
        gate, up = (shared_matrix(row, self.shared[i], self.scales[i], self.form, group) for i in (0, 1))
        h = activate(gate, up)
        return shared_matrix(h, self.shared[2], self.scales[2], self.form, group) if finite(h) else [NAN] * len(row)

    def token(self, row: Row) -> list[np.float32]:
        if not finite(row):
            return [NAN] * len(row)
        logits = [router_logit(row, weights) for weights in self.w["router"]]
        if not finite(logits):
            return [NAN] * len(row)
        chosen = gates(logits, int(self.a["top_k"]), int(self.a["normalize_topk"]))
        terms = [[g * v for v in self.expert(row, e)] for e, g in chosen]
        y = terms[0]
        for term in terms[1:]:
            y = [a + b for a, b in zip(y, term, strict=True)]
        if self.form != "none":
            y = [s + r for s, r in zip(self.shared_expert(row), y, strict=True)]
        return [NAN if math.isnan(v) else v for v in y]

    def __call__(self, x: Array) -> Array:
        return np.array([self.token(row) for row in x], dtype=np.float32)


SIZES = [(5, 7), (33, 19), (40, 70)]
GRID = list(itertools.product(PACKINGS, SHARED, SIZES, (1, 2)))


@pytest.mark.parametrize(("packing", "shared", "sizes", "top_k"), GRID)
@np.errstate(all="ignore")
def test_equals_the_specification(packing: str, shared: tuple[str, int], sizes: tuple[int, int], top_k: int) -> None:
    layer = random_layer(
        3, *sizes, top_k, top_k - 1, packing=packing, shared_format=shared[0], shared_group_size=shared[1]
    )
    x = random_tokens(3, sizes[0])
    assert_same_bits(reference(layer, x), Plain(layer)(x))


@pytest.mark.parametrize(("form", "group"), SHARED)
@pytest.mark.parametrize("sizes", [(150, 3), (3, 150)])
@np.errstate(all="ignore")
def test_equals_the_specification_with_a_last_group_that_is_shorter(
    form: str, group: int, sizes: tuple[int, int]
) -> None:
    layer = random_layer(1, *sizes, 1, shared_format=form, shared_group_size=group)
    x = random_tokens(2, sizes[0])
    assert_same_bits(reference(layer, x), Plain(layer)(x))


@pytest.mark.parametrize(("form", "group"), SHARED)
@np.errstate(all="ignore")
def test_tokens_out_of_range(form: str, group: int) -> None:
    """NaN, infinities, what overflows in the experts, zeros and subnormals; the tokens between them stay as they are."""
    layer = random_layer(3, 10, 9, 2, shared_format=form, shared_group_size=group)
    x = random_tokens(12, 10)
    x[1, 3], x[3, 0], x[5, 9] = np.nan, np.inf, -np.inf
    x[7], x[8], x[9], x[10] = 3e38, 0.0, 1e-42, x[10] * F(1e20)
    expected = Plain(layer)(x)
    assert np.isnan(expected[[1, 3, 5, 7]]).all()
    assert np.isfinite(expected[[0, 2, 4, 6, 8, 9, 11]]).all()
    assert_same_bits(reference(layer, x), expected)


def test_bf16_sums_are_sequential_across_the_blocks_of_the_reference() -> None:
    """More rows and tokens than the reference takes at once."""
    layer = random_layer(1, 4, 1030, 1, shared_format="bf16")
    x = random_tokens(67, 4)
    assert_same_bits(reference(layer, x)[[0, 66]], reference(layer, x[[0, 66]]))
    with np.errstate(all="ignore"):
        assert_same_bits(reference(layer, x[66:]), Plain(layer)(x[66:]))


def test_a_damaged_weight_beyond_an_odd_width_counts_if_it_is_not_finite() -> None:
    layer = random_layer(2, 5, 7, 1, shared_format="bf16")
    x = random_tokens(3, 5)
    undamaged = reference(layer, x)
    lines = layer.weights["shared_gate_up"].view(np.uint16).reshape(1, 2, 3, 16, 2)
    assert (lines[:, :, 2, :, 1] == 0).all()
    lines[0, 0, 2, 0, 1] = 0x4000  # 2.0, times 0
    assert_same_bits(reference(layer, x), undamaged)
    lines[0, 0, 2, 0, 1] = 0x7F80  # infinity
    assert np.isnan(reference(layer, x)).all()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("sizes", [(1, 1), (5, 7), (33, 19), (70, 40)])
@np.errstate(all="ignore")
def test_matmul_equals_the_specification(packing: str, sizes: tuple[int, int]) -> None:
    layer = random_matmul(*sizes, packing)
    x = random_tokens(4, sizes[0])
    x[2, -1] = np.inf
    t = PACKINGS[packing].unpack(layer.weights["packed"], sizes[1], sizes[0])
    expected = [ternary_matrix(row, t, layer.weights["scale"][0]) if finite(row) else [NAN] * sizes[1] for row in x]
    assert_same_bits(reference(layer, x), np.array(expected, dtype=np.float32))


QUANTIZED = [(form, group) for form, group in SHARED if form != "none"]


@pytest.mark.parametrize(("form", "group"), QUANTIZED)
@pytest.mark.parametrize("sizes", [(1, 1), (5, 7), (33, 19), (70, 40)])
@pytest.mark.parametrize("bias", [False, True])
@np.errstate(all="ignore")
def test_quantized_matmul_equals_the_specification(form: str, group: int, sizes: tuple[int, int], bias: bool) -> None:
    layer = random_quantized(*sizes, form, group, bias)
    x = random_tokens(4, sizes[0])
    x[2, -1] = np.inf
    values = SHARED_FORMATS[form].packing.unpack(layer.weights["weight"], sizes[1], sizes[0])
    scale = unpack_scales(tensor(layer.weights["scale"]), sizes[1]).numpy() if "scale" in layer.weights else None
    rows = [shared_matrix(row, values, scale, form, group) if finite(row) else [NAN] * sizes[1] for row in x]
    expected = np.array(rows, dtype=np.float32) + layer.weights.get("bias", np.float32(0))
    assert_same_bits(reference(layer, x), np.where(np.isnan(expected), NAN, expected))


@pytest.mark.parametrize(("form", "group"), QUANTIZED)
def test_a_quantized_matrix_is_taken_some_rows_at_a_time(
    form: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = random_quantized(45, 70, form, group), random_tokens(3, 45)
    whole = reference(layer, x)
    monkeypatch.setattr(mote_export.ops, "WEIGHTS_AT_ONCE", 32 * 45)
    assert_same_bits(reference(layer, x), whole)


def test_every_case_for_the_plugins_has_a_name_and_a_reference_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) == len(MOE_CASES) + len(MATMUL_CASES) + len(QUANTIZED_CASES)
    combinations = {tuple(case.layer.attributes.get(name) for name in ATTRIBUTES) for case in MOE_CASES}
    assert combinations == {(packing, *shared) for packing in PACKINGS for shared in SHARED}
    for case in CASES:
        y = reference(case.layer, case.tokens())
        assert y.shape == output_shape(case)


ATTRIBUTES = ("packing", "shared_format", "shared_group_size")


def output_shape(case: Case) -> tuple[int, ...]:
    return (*case.shape[:-1], int(case.layer.attributes.get("out_features", case.shape[-1])))


def arguments(layer: Layer, x: Array) -> list[Any]:
    return [torch.from_numpy(x), *layer.tensors(), *layer.torch_attributes()]


OPS = {name: getattr(torch.ops.mote, op) for name, op in TORCH_NAMES.items()}
SOME = [case for case in CASES if case.name.endswith(("int4_32_odd_sizes", "bf16_odd_sizes", "rank_4"))]


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_out_variant_and_fake_kernel(case: Case) -> None:
    op, values = OPS[case.layer.op_type], arguments(case.layer, case.tokens())
    expected = op(*values)
    out = torch.full_like(expected, 7.0)
    assert op.out(*values, out=out) is out
    assert_same_bits(out.numpy(), expected.numpy())
    torch.library.opcheck(op.default, tuple(values), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": "3bit"}, r"packing '3bit', layout version 1: expected 2bit or 1\.6bit, 1"),
        ({"layout_version": 2}, "layout version 2"),
        ({"activation": "gelu"}, "activation 'gelu'"),
        ({"shared_format": "int2"}, "shared format 'int2'"),
        ({"shared_format": "bf16"}, "needs the weights of the shared expert"),
        ({"intermediate_size": 1 << 18}, "expected at most 131072"),
        ({"intermediate_size": 49}, "expected"),
    ],
)
def test_refuses_attributes(changes: dict[str, Any], message: str) -> None:
    layer = random_layer(2, 32, 48, 1).with_attributes(**changes)
    with pytest.raises(ValueError, match=message):
        reference(layer, random_tokens(1, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "2bit"}, "format '2bit', layout version 1: expected bf16, int8, int4, 1"),
        ({"layout_version": 2}, "layout version 2"),
        ({"in_features": 1 << 18}, "expected at most 1048576 x 131072"),
        ({"out_features": 1 << 21}, "expected at most 1048576 x 131072"),
        ({"in_features": 33}, "x has 32 features, expected 33"),
        ({"out_features": 49}, "weight has 3 blocks of rows, expected 4"),
    ],
)
def test_quantized_matmul_refuses_attributes(changes: dict[str, Any], message: str) -> None:
    layer = random_quantized(32, 48, "int4", 32).with_attributes(**changes)
    with pytest.raises(ValueError, match=message):
        reference(layer, random_tokens(1, 32))
