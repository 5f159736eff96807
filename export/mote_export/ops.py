"""The operators of docs/operator.md as torch custom ops that define their bits: `torch.ops.mote.ternary_moe` and so on.

The reference runs every float32 operation of the specification as one eager torch operation, and the integer dot products as
matrix products of small integers in a float type that holds them exactly. So the kernels of the runtimes can be compared with `==`.
Importing this module registers the ops, their fake kernels and the `.out` variants that ExecuTorch lowers to.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mote_export.model.quantizers import quantize_activations
from mote_export.packing import (
    LAYOUT_VERSION,
    MAX_WIDTH,
    PACKINGS,
    ROWS,
    SHARED_FORMATS,
    Array,
    tiles,
    unpack_gate_up,
    unpack_scales,
)

LANES = 16
EXACT_FLOAT32_INTEGER = 1 << 24
TOKENS_AT_ONCE, ROWS_AT_ONCE = 32, 1024  # of the bfloat16 sums, whose intermediate results then stay in the cache
WEIGHTS_AT_ONCE = 1 << 22  # of a quantized matrix, which may be that of a vocabulary
MAX_ROWS = 1 << 20  # of a quantized matrix
NO_SHARED_EXPERT = "none"
NAN = float("nan")
# Of exp, from the highest power down: the coefficients of Cephes' expf (docs/operator.md).
HORNER = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)

MOE_SCHEMA = (
    "(Tensor x, Tensor router, Tensor gate_up_packed, Tensor gate_up_scale, Tensor down_packed, Tensor down_scale, "
    "Tensor? shared_gate_up, Tensor? shared_gate_up_scale, Tensor? shared_down, Tensor? shared_down_scale, "
    "int num_experts, int top_k, bool normalize_topk, int intermediate_size, str activation, str packing, "
    "int layout_version, str shared_format, int shared_group_size"
)
MATMUL_SCHEMA = (
    "(Tensor x, Tensor packed, Tensor scale, int in_features, int out_features, str packing, int layout_version"
)
QUANTIZED_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int in_features, int out_features, str format, int group_size, "
    "int layout_version"
)
_LIBRARY = torch.library.Library("mote", "DEF")
for _name, _schema in (
    ("ternary_moe", MOE_SCHEMA),
    ("ternary_matmul", MATMUL_SCHEMA),
    ("quantized_matmul", QUANTIZED_SCHEMA),
):
    _LIBRARY.define(f"{_name}{_schema}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.define(f"{_name}.out{_schema}, *, Tensor(a!) out) -> Tensor(a!)", tags=(torch.Tag.pt2_compliant_tag,))


def _ternary_moe(
    x: Tensor,
    router: Tensor,
    gate_up_packed: Tensor,
    gate_up_scale: Tensor,
    down_packed: Tensor,
    down_scale: Tensor,
    shared_gate_up: Tensor | None,
    shared_gate_up_scale: Tensor | None,
    shared_down: Tensor | None,
    shared_down_scale: Tensor | None,
    num_experts: int,
    top_k: int,
    normalize_topk: bool,
    intermediate_size: int,
    activation: str,
    packing: str,
    layout_version: int,
    shared_format: str,
    shared_group_size: int,
) -> Tensor:
    if activation != "silu":
        raise ValueError(f"activation {activation!r}, expected 'silu'")
    hidden_size = x.shape[-1]
    _check_packing(packing, layout_version, max(hidden_size, intermediate_size))
    tokens = x.reshape(-1, hidden_size)
    logits = router_logits(tokens, router)
    expert, gate = select_experts(logits, top_k, normalize_topk)
    codes, step = quantize_activations(tokens)
    contribution = torch.empty(tokens.shape[0], top_k, hidden_size)
    for index in range(num_experts):
        token, rank = torch.where(expert == index)
        if token.numel() == 0:
            continue
        gate_w, up_w = unpack_gate_up(gate_up_packed[index].numpy(), intermediate_size, hidden_size, PACKINGS[packing])
        gate_value = _ternary_product(codes[token], gate_w, step[token] * gate_up_scale[index, 0])
        up_value = _ternary_product(codes[token], up_w, step[token] * gate_up_scale[index, 1])
        hidden = silu(gate_value) * up_value
        h_codes, h_step = quantize_activations(hidden)
        down_w = PACKINGS[packing].unpack(down_packed[index].numpy(), hidden_size, intermediate_size)
        down_value = _ternary_product(h_codes, down_w, h_step * down_scale[index])
        down_value[~hidden.isfinite().all(dim=-1)] = NAN
        contribution[token, rank] = down_value
    y = gate[:, 0, None] * contribution[:, 0]
    for rank_index in range(1, top_k):
        y = y + gate[:, rank_index, None] * contribution[:, rank_index]
    if shared_format != NO_SHARED_EXPERT:
        matrices = (shared_gate_up, shared_gate_up_scale, shared_down, shared_down_scale)
        y = _shared_expert(tokens, *matrices, intermediate_size, shared_format, shared_group_size) + y
    y[~(tokens.isfinite().all(dim=-1) & logits.isfinite().all(dim=-1))] = NAN
    return torch.where(y.isnan(), NAN, y).view_as(x)


def _ternary_matmul(
    x: Tensor, packed: Tensor, scale: Tensor, in_features: int, out_features: int, packing: str, layout_version: int
) -> Tensor:
    _check_packing(packing, layout_version, in_features)
    if x.shape[-1] != in_features:
        raise ValueError(f"x has {x.shape[-1]} features, expected {in_features}")
    tokens = x.reshape(-1, in_features)
    codes, step = quantize_activations(tokens)
    weight = PACKINGS[packing].unpack(packed.numpy(), out_features, in_features)
    y = _ternary_product(codes, weight, step * scale)
    y[~tokens.isfinite().all(dim=-1)] = NAN
    return torch.where(y.isnan(), NAN, y).view(*x.shape[:-1], out_features)


def _quantized_matmul(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int,
    format: str,
    group_size: int,
    layout_version: int,
) -> Tensor:
    if format not in SHARED_PRODUCTS or layout_version != LAYOUT_VERSION:
        raise ValueError(
            f"format {format!r}, layout version {layout_version}: expected {', '.join(SHARED_PRODUCTS)}, {LAYOUT_VERSION}"
        )
    if in_features > MAX_WIDTH or out_features > MAX_ROWS:
        raise ValueError(f"{out_features} x {in_features} weights, expected at most {MAX_ROWS} x {MAX_WIDTH}")
    if x.shape[-1] != in_features:
        raise ValueError(f"x has {x.shape[-1]} features, expected {in_features}")
    if weight.shape[0] != tiles(out_features, ROWS):
        raise ValueError(f"weight has {weight.shape[0]} blocks of rows, expected {tiles(out_features, ROWS)}")
    tokens = x.reshape(-1, in_features)
    y = torch.empty(tokens.shape[0], out_features)
    count = max(1, WEIGHTS_AT_ONCE // (ROWS * in_features))
    for block in range(0, weight.shape[0], count):
        rows = slice(block * ROWS, min(out_features, (block + count) * ROWS))
        some_scale = None if scale is None else scale[block : block + count]
        some = weight[block : block + count]
        y[:, rows] = _matrix_product(tokens, some, some_scale, rows.stop - rows.start, format, group_size)
    if bias is not None:
        y = y + bias
    y[~tokens.isfinite().all(dim=-1)] = NAN
    return torch.where(y.isnan(), NAN, y).view(*x.shape[:-1], out_features)


def _matrix_product(x: Tensor, lines: Tensor, scale: Tensor | None, rows: int, form: str, group_size: int) -> Tensor:
    """What docs/operator.md, step 6, says of one matrix in `form`: x [T, K], lines of [rows, K]; [T, rows]."""
    packing = SHARED_FORMATS[form].packing
    stored = tiles(x.shape[1], packing.inputs) * packing.inputs
    values = packing.unpack(lines.numpy(), rows, stored if form == "bf16" else x.shape[1])
    return SHARED_PRODUCTS[form](x, values, None if scale is None else unpack_scales(scale, rows), group_size)


def _check_packing(packing: str, layout_version: int, greatest_size: int) -> None:
    if packing not in PACKINGS or layout_version != LAYOUT_VERSION:
        raise ValueError(
            f"packing {packing!r}, layout version {layout_version}: expected {' or '.join(PACKINGS)}, {LAYOUT_VERSION}"
        )
    if greatest_size > MAX_WIDTH:
        raise ValueError(f"a width of {greatest_size}, expected at most {MAX_WIDTH}")


def _ternary_product(codes: Tensor, weight: Array, factor: Tensor) -> Tensor:
    """float(acc) * factor of step 5: codes [T, K], ternary weight int8 [N, K], factor [T, 1]; [T, N].

    Exact in float32: a sum is at most 127 * MAX_WIDTH, which is below 2^24.
    """
    acc = codes @ torch.from_numpy(weight).float().T
    return (acc + 0.0) * factor  # -1 * 0 is -0, but the integer 0 has no sign


def _shared_expert(
    tokens: Tensor,
    gate_up: Tensor | None,
    gate_up_scale: Tensor | None,
    down: Tensor | None,
    down_scale: Tensor | None,
    intermediate_size: int,
    shared_format: str,
    group_size: int,
) -> Tensor:
    """S of docs/operator.md, step 6, for tokens [T, H]."""
    if shared_format not in SHARED_PRODUCTS:
        raise ValueError(f"shared format {shared_format!r}, expected none, {', '.join(SHARED_PRODUCTS)}")
    if gate_up is None or down is None:
        raise ValueError(f"shared format {shared_format!r} needs the weights of the shared expert")
    hidden_size = tokens.shape[1]

    def matrix(x: Tensor, lines: Tensor, scale: Tensor | None, rows: int) -> Tensor:
        return _matrix_product(x, lines, scale, rows, shared_format, group_size)

    gate_scale, up_scale = (None, None) if gate_up_scale is None else gate_up_scale.unbind(1)
    gate_value = matrix(tokens, gate_up[:, 0], gate_scale, intermediate_size)
    up_value = matrix(tokens, gate_up[:, 1], up_scale, intermediate_size)
    hidden = silu(gate_value) * up_value
    result = matrix(hidden, down, down_scale, hidden_size)
    result[~hidden.isfinite().all(dim=-1)] = NAN
    return result


def product_bf16(x: Tensor, bits: Array, scale: Tensor | None, group_size: int) -> Tensor:
    """Sequential float32 sums over even and over odd inputs: x [T, K], bit patterns uint16 [N, K or more]; [T, N].

    In numpy, which does not share such small steps out among threads: waiting for each other would take most of the time.
    """
    rows, cols = bits.shape
    pairs = (cols + 1) // 2
    # What lies beyond the inputs is multiplied by 0, which NaN and infinity of a damaged file survive.
    weight = np.zeros((2 * pairs, rows), np.uint16)
    weight[:cols] = bits.T
    weight = weight.reshape(pairs, 2, 1, rows)
    inputs = np.pad(x.detach().numpy(), [(0, 0), (0, 2 * pairs - x.shape[1])]).T.reshape(pairs, 2, -1, 1)
    y = np.empty((x.shape[0], rows), np.float32)
    for row in range(0, rows, ROWS_AT_ONCE):
        w = (weight[..., row : row + ROWS_AT_ONCE].astype(np.uint32) << 16).view(np.float32)
        for token in range(0, x.shape[0], TOKENS_AT_ONCE):
            v = np.ascontiguousarray(inputs[:, :, token : token + TOKENS_AT_ONCE])
            sums = np.zeros((2, v.shape[2], w.shape[3]), np.float32)
            term = np.empty_like(sums)
            with np.errstate(all="ignore"):  # infinities and NaN are results like any other
                for pair in range(pairs):
                    np.multiply(w[pair], v[pair], out=term)
                    sums += term
                y[token : token + v.shape[2], row : row + w.shape[3]] = sums[0] + sums[1]
    return torch.from_numpy(y)


def product_integer(x: Tensor, codes: Array, scale: Tensor | None, group_size: int) -> Tensor:
    """a * d, a the sum of float(acc) * w over the groups in order: x [T, K], codes int8 [N, K], scale float32 [N, G]; [T, N].

    A row is one group where `group_size` is 0.
    """
    assert scale is not None
    q, step = quantize_activations(x)
    size = group_size or x.shape[1]
    exact = torch.float32 if 128 * 128 * size <= EXACT_FLOAT32_INTEGER else torch.float64
    q, weight = q.to(exact), torch.from_numpy(codes).to(exact)
    total = torch.zeros(x.shape[0], codes.shape[0])
    for group in range(scale.shape[1]):
        part = slice(group * size, (group + 1) * size)
        total = total + (q[:, part] @ weight[:, part].T).float() * scale[:, group]
    return total * step


SHARED_PRODUCTS: dict[str, Callable[[Tensor, Array, Tensor | None, int], Tensor]] = {
    "bf16": product_bf16,
    "int8": product_integer,
    "int4": product_integer,
}


def silu(v: Tensor) -> Tensor:
    """v / (1 + exp(-v)) with the exp below."""
    return v / (exp(-v) + 1.0)


def router_logits(tokens: Tensor, router: Tensor) -> Tensor:
    """Dot products [T, E] of float32 [T, H] and [E, H] with 16 lanes and a fixed fold (docs/operator.md, step 2)."""
    padding = -tokens.shape[1] % LANES
    steps = (tokens.shape[1] + padding) // LANES
    x = torch.nn.functional.pad(tokens, (0, padding)).reshape(tokens.shape[0], 1, steps, LANES)
    w = torch.nn.functional.pad(router, (0, padding)).reshape(1, router.shape[0], steps, LANES)
    lanes = torch.zeros(tokens.shape[0], router.shape[0], LANES)
    for k in range(steps):
        lanes = lanes + x[:, :, k] * w[:, :, k]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def select_experts(logits: Tensor, top_k: int, normalize_topk: bool) -> tuple[Tensor, Tensor]:
    """Softmax and top-k (steps 3 and 4): expert int64 [T, k] and gate float32 [T, k], in descending order of the logits."""
    exponential = exp(logits - logits.amax(dim=-1, keepdim=True))
    probability = exponential / _sum_in_order(exponential)
    # NaN rows become NaN in the end; any valid choice of expert will do for them.
    expert = torch.sort(logits.nan_to_num(), dim=-1, descending=True, stable=True).indices[:, :top_k]
    gate = probability.gather(-1, expert)
    return expert, gate / _sum_in_order(gate) if normalize_topk else gate


def _sum_in_order(values: Tensor) -> Tensor:
    total = values[:, :1]
    for index in range(1, values.shape[1]):
        total = total + values[:, index : index + 1]
    return total


def exp(v: Tensor) -> Tensor:
    """exp of docs/operator.md (the coefficients of Cephes' expf), float32 elementwise."""
    v = torch.where(v > -87.0, v, -87.0)
    v = torch.where(v < 88.0, v, 88.0)
    n = (v * 1.44269504).round()
    r = v - n * 0.693359375
    r = r - n * -2.12194440e-4
    p = torch.full_like(r, HORNER[0])
    for c in HORNER[1:]:
        p = p * r + c
    p = p * (r * r)
    p = p + r
    p = p + 1.0
    return p * ((n.to(torch.int32) + 127) << 23).view(torch.float32)


def _ternary_moe_out(*args: object, out: Tensor) -> Tensor:
    return out.copy_(_ternary_moe(*args))  # type: ignore[arg-type]


def _ternary_moe_fake(x: Tensor, *args: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _ternary_matmul_out(*args: object, out: Tensor) -> Tensor:
    return out.copy_(_ternary_matmul(*args))  # type: ignore[arg-type]


def _ternary_matmul_fake(
    x: Tensor, packed: Tensor, scale: Tensor, in_features: int, out_features: int, packing: str, layout_version: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _quantized_matmul_out(*args: object, out: Tensor) -> Tensor:
    return out.copy_(_quantized_matmul(*args))  # type: ignore[arg-type]


def _quantized_matmul_fake(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int,
    *args: object,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


_LIBRARY.impl("ternary_moe", _ternary_moe, "CPU")
_LIBRARY.impl("ternary_moe.out", _ternary_moe_out, "CPU")
_LIBRARY.impl("ternary_matmul", _ternary_matmul, "CPU")
_LIBRARY.impl("ternary_matmul.out", _ternary_matmul_out, "CPU")
_LIBRARY.impl("quantized_matmul", _quantized_matmul, "CPU")
_LIBRARY.impl("quantized_matmul.out", _quantized_matmul_out, "CPU")
torch.library.register_fake("mote::ternary_moe", _ternary_moe_fake, lib=_LIBRARY)
torch.library.register_fake("mote::ternary_matmul", _ternary_matmul_fake, lib=_LIBRARY)
torch.library.register_fake("mote::quantized_matmul", _quantized_matmul_fake, lib=_LIBRARY)
