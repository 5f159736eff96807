"""`torch.ops.mote.ternary_moe`: the operator of docs/operator.md as a torch custom op, with a reference that defines its bits.

The reference runs every float32 operation of the specification as one eager torch operation, and the integer dot products as
float32 matrix products of small integers, which are exact below 2^24. So the kernels of the runtimes can be compared with `==`.
Importing this module registers the op, its fake kernel and the `.out` variant that ExecuTorch lowers to.
"""

import torch
from torch import Tensor

from mote_export.model.quantizers import quantize_activations
from mote_export.packing import LAYOUT_VERSION, unpack_2bit, unpack_gate_up

LANES = 16
EXACT_FLOAT32_INTEGER = 1 << 24
NAN = float("nan")

SCHEMA = (
    "(Tensor x, Tensor router, Tensor gate_up_packed, Tensor gate_up_scale, Tensor down_packed, Tensor down_scale, "
    "int num_experts, int top_k, bool normalize_topk, int intermediate_size, str activation, str packing, "
    "int layout_version"
)
_LIBRARY = torch.library.Library("mote", "DEF")
_LIBRARY.define(f"ternary_moe{SCHEMA}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(f"ternary_moe.out{SCHEMA}, *, Tensor(a!) out) -> Tensor(a!)", tags=(torch.Tag.pt2_compliant_tag,))


def _ternary_moe(
    x: Tensor,
    router: Tensor,
    gate_up_packed: Tensor,
    gate_up_scale: Tensor,
    down_packed: Tensor,
    down_scale: Tensor,
    num_experts: int,
    top_k: int,
    normalize_topk: bool,
    intermediate_size: int,
    activation: str,
    packing: str,
    layout_version: int,
) -> Tensor:
    if (activation, packing, layout_version) != ("silu", "2bit", LAYOUT_VERSION):
        raise ValueError(
            f"activation {activation!r}, packing {packing!r}, layout version {layout_version}: expected 'silu', '2bit', "
            f"{LAYOUT_VERSION}"
        )
    hidden_size = x.shape[-1]
    if 127 * max(hidden_size, intermediate_size) >= EXACT_FLOAT32_INTEGER:
        raise ValueError(f"sizes {hidden_size} and {intermediate_size} are beyond the reference's exact range")
    tokens = x.reshape(-1, hidden_size)
    logits = router_logits(tokens, router)
    expert, gate = select_experts(logits, top_k, normalize_topk)
    codes, step = quantize_activations(tokens)
    contribution = torch.empty(tokens.shape[0], top_k, hidden_size)
    for index in range(num_experts):
        token, rank = torch.where(expert == index)
        if token.numel() == 0:
            continue
        gate_w, up_w, down_w = _unpack_expert(gate_up_packed[index], down_packed[index], hidden_size, intermediate_size)
        gate_value = (codes[token] @ gate_w.T) * (step[token] * gate_up_scale[index, 0])
        up_value = (codes[token] @ up_w.T) * (step[token] * gate_up_scale[index, 1])
        hidden = gate_value / (exp(-gate_value) + 1.0) * up_value
        h_codes, h_step = quantize_activations(hidden)
        down_value = (h_codes @ down_w.T) * (h_step * down_scale[index])
        down_value[~hidden.isfinite().all(dim=-1)] = NAN
        contribution[token, rank] = down_value
    y = gate[:, 0, None] * contribution[:, 0]
    for rank_index in range(1, top_k):
        y = y + gate[:, rank_index, None] * contribution[:, rank_index]
    invalid = ~(tokens.isfinite().all(dim=-1) & logits.isfinite().all(dim=-1))
    y[invalid] = NAN
    return torch.where(y.isnan(), NAN, y).view_as(x)


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
    p = torch.full_like(r, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + c
    p = p * (r * r)
    p = p + r
    p = p + 1.0
    return p * ((n.to(torch.int32) + 127) << 23).view(torch.float32)


def _unpack_expert(
    gate_up: Tensor, down: Tensor, hidden_size: int, intermediate_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, up [I, H] and down [H, I] of one expert as float32 -1, 0, 1."""
    gate_codes, up_codes = unpack_gate_up(gate_up.numpy(), intermediate_size, hidden_size)
    down_codes = unpack_2bit(down.numpy(), hidden_size, intermediate_size)
    gate, up, down = (torch.from_numpy(codes).float() for codes in (gate_codes, up_codes, down_codes))
    return gate, up, down


def _ternary_moe_out(*args: object, out: Tensor) -> Tensor:
    return out.copy_(_ternary_moe(*args))  # type: ignore[arg-type]


def _ternary_moe_fake(x: Tensor, *args: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_LIBRARY.impl("ternary_moe", _ternary_moe, "CPU")
_LIBRARY.impl("ternary_moe.out", _ternary_moe_out, "CPU")
torch.library.register_fake("mote::ternary_moe", _ternary_moe_fake, lib=_LIBRARY)
