"""`mote::ternary_moe` and `mote::ternary_matmul` -> stock torch operators, for an ExecuTorch program without the plugin.

The steps of docs/operator.md with its rounding, in operators of ExecuTorch's portable kernels: integer products are float32 matrix
products of integers small enough to be exact, sums in a specified order are `cumsum`, `exp` is the specified polynomial. In
ExecuTorch some rows are a few units in the last place off still (torch's own `cumsum` adds in double), and a shared expert in
bf16 is, whose sums a matrix product orders as it likes.

Weights stay packed, several codes a byte, but row by row, as a lookup of bytes then unpacks them without moving them. Every expert
is unpacked in every run and computes all tokens: how many of them select it is not known when shapes are planned.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_export.model.quantizers import INT8_MAX, SCALE_FLOOR
from mote_export.ops import EXACT_FLOAT32_INTEGER, HORNER, LANES, NAN, NO_SHARED_EXPERT
from mote_export.packing import PACKINGS, SHARED_FORMATS, Array, unpack_gate_up, unpack_scales
from mote_export.passes.base import ModulePass
from mote_export.passes.pack_ternary_experts import PackedTernaryExperts
from mote_export.passes.pack_ternary_linear import PackedTernaryLinear

# Of each packing: codes a byte, and the number that a code counts in it.
BASES = {"2bit": (4, 4), "1.6bit": (5, 3)}
INT4_OF_A_BYTE, INT4_BASE, INT4_OFFSET = 2, 16, 8
LEAST_POWER, GREATEST_POWER = -126, 127


class Bytes(nn.Module):
    """Integers [..., N, K] as digits of bytes; forward unpacks [N, bytes] of them to float32 [N, K + padding], padded with 0."""

    table: Tensor

    def __init__(self, count: int, base: int, offset: int) -> None:
        super().__init__()
        self.count, self.base, self.offset = count, base, offset
        digits = np.arange(256)[:, None] // base ** np.arange(count) % base - offset
        self.register_buffer("table", torch.from_numpy(digits.astype(np.float32)))

    def pack(self, codes: Array) -> Tensor:
        packed = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // self.count)), np.uint8)
        for index in range(self.count):
            place = np.uint8(self.base**index)
            digits = codes[..., index :: self.count].astype(np.uint8)  # -1 is 255, and the offset makes 0 of it
            packed[..., : digits.shape[-1]] += (digits + np.uint8(self.offset)) * place
            packed[..., digits.shape[-1] :] += np.uint8(self.offset) * place
        return torch.from_numpy(packed)

    def forward(self, packed: Tensor) -> Tensor:
        return F.embedding(packed.to(torch.int32), self.table).flatten(-2)


def product(codes: Tensor, weight: Tensor) -> Tensor:
    """float(acc): integers [T, K] times [N, K or more, padded with 0]; [T, N]."""
    acc = F.linear(F.pad(codes, (0, weight.shape[-1] - codes.shape[-1])), weight)
    return acc + 0.0  # -1 * 0 is -0, but the integer 0 has no sign


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, as float32, and steps [T, 1]."""
    absmax = rows.abs().amax(dim=-1, keepdim=True).clamp(min=SCALE_FLOOR)
    greatest = torch.full_like(absmax, INT8_MAX)
    return (rows * (greatest / absmax)).round(), absmax / INT8_MAX


def finite_or_zero(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of which those with NaN or infinity are 0, and the others, bool [T, 1]."""
    small = torch.where(rows.abs() <= torch.finfo(torch.float32).max, 1.0, 0.0)  # 0 for NaN
    good = small.amin(dim=-1, keepdim=True) > 0.5
    return torch.where(good, rows, 0.0), good


class Silu(nn.Module):
    """v / (1 + exp(-v)) with the exp of docs/operator.md."""

    powers: Tensor

    def __init__(self) -> None:
        super().__init__()
        powers = np.exp2(np.arange(LEAST_POWER, GREATEST_POWER + 1)).astype(np.float32)
        self.register_buffer("powers", torch.from_numpy(powers)[:, None])

    def exp(self, v: Tensor) -> Tensor:
        v = torch.where(v > -87.0, v, -87.0)
        v = torch.where(v < 88.0, v, 88.0)
        n = (v * 1.44269504).round()
        r = v - n * 0.693359375
        r = r - n * -2.12194440e-4
        p = torch.full_like(r, HORNER[0])
        for coefficient in HORNER[1:]:
            p = p * r + coefficient
        p = p * (r * r) + r + 1.0
        return p * F.embedding((n - LEAST_POWER).to(torch.int32), self.powers).squeeze(-1)

    def forward(self, v: Tensor) -> Tensor:
        return v / (self.exp(-v) + 1.0)


class PortableTernaryMatMul(nn.Module):
    """`PackedTernaryLinear` in stock operators."""

    packed: Tensor
    scale: Tensor

    def __init__(self, linear: PackedTernaryLinear) -> None:
        super().__init__()
        self.norm = linear.norm
        packing = linear.attributes["packing"]
        self.bytes = Bytes(*BASES[packing], 1)
        codes = PACKINGS[packing].unpack(linear.packed.numpy(), linear.out_features, linear.in_features)
        self.register_buffer("packed", self.bytes.pack(codes))
        self.register_buffer("scale", linear.scale)

    def forward(self, x: Tensor) -> Tensor:
        rows = (x if self.norm is None else self.norm(x)).flatten(0, -2)
        rows, good = finite_or_zero(rows)
        codes, step = quantize(rows)
        y = product(codes, self.bytes(self.packed)) * (step * self.scale)
        return torch.where(good, y, NAN).view(*x.shape[:-1], y.shape[-1])


class SharedMatrix(nn.Module):
    """A matrix of the shared expert: [T, K] to [T, N]. int8 and int4 codes stay packed, bf16 weights too."""

    weight: Tensor
    scale: Tensor

    def __init__(self, lines: Tensor, scale: Tensor | None, rows: int, cols: int, form: str, group_size: int) -> None:
        super().__init__()
        self.form, self.size = form, group_size or cols
        values = SHARED_FORMATS[form].packing.unpack(lines.numpy(), rows, cols)
        self.bytes = Bytes(INT4_OF_A_BYTE, INT4_BASE, INT4_OFFSET)
        if form == "bf16":
            self.register_buffer("weight", torch.from_numpy(values).view(torch.bfloat16))
            return
        assert scale is not None
        self.register_buffer("scale", unpack_scales(scale, rows).T.contiguous().bfloat16())
        padded = np.pad(values, [(0, 0), (0, self.scale.shape[0] * self.size - cols)])
        self.register_buffer("weight", self.bytes.pack(padded) if form == "int4" else torch.from_numpy(padded))

    def forward(self, rows: Tensor) -> Tensor:
        if self.form == "bf16":
            return F.linear(rows, self.weight.float())
        codes, step = quantize(rows)
        weight = self.bytes(self.weight) if self.form == "int4" else self.weight.float()
        groups = self.scale.shape[0]
        total = torch.zeros(codes.shape[0], weight.shape[0])
        codes = F.pad(codes, (0, groups * self.size - codes.shape[1]))
        for index in range(groups):
            part = slice(index * self.size, (index + 1) * self.size)
            total = total + exact_product(codes[:, part], weight[:, part]) * self.scale[index].float()
        return total * step


def exact_product(codes: Tensor, weight: Tensor) -> Tensor:
    """float(acc) of integers of at most 128, in a type that holds their sums."""
    if 128 * 128 * codes.shape[1] <= EXACT_FLOAT32_INTEGER:
        return F.linear(codes, weight)
    return F.linear(codes.double(), weight.double()).float()


class PortableTernaryMoE(nn.Module):
    """`PackedTernaryExperts` in stock operators; forward: float32 [..., H] to the same."""

    router: Tensor
    gate_up: Tensor
    gate_up_scale: Tensor
    down: Tensor
    down_scale: Tensor

    def __init__(self, experts: PackedTernaryExperts) -> None:
        super().__init__()
        attributes = experts.attributes
        packing, intermediate, hidden = attributes["packing"], experts.intermediate_size, experts.hidden_size
        self.num_experts: int = experts.num_experts
        self.top_k: int = attributes["top_k"]
        self.normalize_topk: bool = attributes["normalize_topk"]
        self.bytes, self.silu = Bytes(*BASES[packing], 1), Silu()
        gate, up = unpack_gate_up(experts.gate_up_packed.numpy(), intermediate, hidden, PACKINGS[packing])
        down = PACKINGS[packing].unpack(experts.down_packed.numpy(), hidden, intermediate)
        self.register_buffer("router", F.pad(experts.router, (0, -hidden % LANES)).view(self.num_experts, -1, LANES))
        self.register_buffer("gate_up", self.bytes.pack(np.concatenate([gate, up], axis=1)))
        self.register_buffer("down", self.bytes.pack(down))
        self.register_buffer("gate_up_scale", experts.get_buffer("gate_up_scale"))
        self.register_buffer("down_scale", experts.get_buffer("down_scale"))
        self.shared: nn.ModuleList | None = None
        if attributes["shared_format"] != NO_SHARED_EXPERT:
            self.shared = _shared_matrices(experts)

    def forward(self, x: Tensor) -> Tensor:
        tokens, good = finite_or_zero(x.flatten(0, -2))
        logits, good_logits = finite_or_zero(self.router_logits(tokens))
        expert, gate = self.select(logits)
        codes, step = quantize(tokens)
        by_rank = [torch.zeros_like(tokens) for _ in range(self.top_k)]
        for index in range(self.num_experts):
            hit = expert == index
            y = self.run_expert(index, codes, step)
            by_rank = [torch.where(hit[:, rank, None], y, sums) for rank, sums in enumerate(by_rank)]
        y = gate[:, 0, None] * by_rank[0]
        for rank in range(1, self.top_k):
            y = y + gate[:, rank, None] * by_rank[rank]
        if self.shared is not None:
            gate_matrix, up_matrix, down_matrix = self.shared
            hidden, good_hidden = finite_or_zero(self.silu(gate_matrix(tokens)) * up_matrix(tokens))
            y = torch.where(good_hidden, down_matrix(hidden), NAN) + y
        return torch.where(good & good_logits, y, NAN).view(x.shape)

    def run_expert(self, index: int, codes: Tensor, step: Tensor) -> Tensor:
        """What an expert makes of all tokens, [T, H]."""
        gate, up = product(codes, self.bytes(self.gate_up[index])).chunk(2, dim=-1)
        gate_scale, up_scale = self.gate_up_scale[index].unbind()
        hidden, good = finite_or_zero(self.silu(gate * (step * gate_scale)) * (up * (step * up_scale)))
        hidden_codes, hidden_step = quantize(hidden)
        y = product(hidden_codes, self.bytes(self.down[index])) * (hidden_step * self.down_scale[index])
        return torch.where(good, y, NAN)

    def router_logits(self, tokens: Tensor) -> Tensor:
        """[T, E]: sums in 16 lanes, which are folded in the end."""
        steps = self.router.shape[1]
        rows = F.pad(tokens, (0, steps * LANES - tokens.shape[1])).view(-1, 1, steps, LANES)
        lanes = (rows * self.router).cumsum(dim=2)[:, :, -1]
        while lanes.shape[-1] > 1:
            half = lanes.shape[-1] // 2
            lanes = lanes[..., :half] + lanes[..., half:]
        return lanes[..., 0]

    def select(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Experts int64 [T, k] in descending order of the logits, of equal ones the first, and their gates [T, k]."""
        exponential = self.silu.exp(logits - logits.amax(dim=-1, keepdim=True))
        probability = exponential / exponential.cumsum(dim=-1)[:, -1:]
        candidates, index = logits, torch.arange(self.num_experts)
        chosen, gates = [], []
        for _ in range(self.top_k):
            best = candidates.argmax(dim=-1, keepdim=True)
            chosen.append(best)
            gates.append(torch.where(index == best, probability, 0.0).sum(dim=-1, keepdim=True))
            candidates = torch.where(index == best, -torch.inf, candidates)
        gate = torch.cat(gates, dim=-1)
        if self.normalize_topk:
            gate = gate / gate.cumsum(dim=-1)[:, -1:]
        return torch.cat(chosen, dim=-1), gate


def _shared_matrices(experts: PackedTernaryExperts) -> nn.ModuleList:
    """Gate, up and down."""
    form, group = experts.attributes["shared_format"], experts.attributes["shared_group_size"]
    _, _, _, _, _, gate_up, gate_up_scale, down, down_scale = experts.operator_inputs()
    assert gate_up is not None
    assert down is not None
    scales = (None, None) if gate_up_scale is None else gate_up_scale.unbind(1)
    rows, cols = experts.intermediate_size, experts.hidden_size
    halves = zip(gate_up.unbind(1), scales, strict=True)
    matrices = [SharedMatrix(lines, scale, rows, cols, form, group) for lines, scale in halves]
    return nn.ModuleList([*matrices, SharedMatrix(down, down_scale, cols, rows, form, group)])


def _portable(name: str, old: type[nn.Module], new: Callable[[Any], nn.Module]) -> ModulePass:
    return ModulePass(name, lambda module: isinstance(module, old), lambda module: None, new)


PORTABLE_TERNARY_MOE = _portable("portable-ternary-moe", PackedTernaryExperts, PortableTernaryMoE)
PORTABLE_TERNARY_MATMUL = _portable("portable-ternary-matmul", PackedTernaryLinear, PortableTernaryMatMul)
