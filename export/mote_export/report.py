"""Memory of an export: its experts, by the formulas of the MoTE paper and by the bytes it really holds, and its other integers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from mote_export.memory import FLOAT32_BYTES, full_precision_bytes, mote_bytes
from mote_export.model import MoteModel
from mote_export.passes import (
    PackedLinear,
    PackedMoteLayer,
    PackedTernaryLinear,
    QuantizedEmbedding,
    QuantizedLinear,
    StockMoeLayer,
)
from mote_export.passes.quantize_linear import Bf16Embedding, Bf16Linear
from mote_export.quantize import Rounding

Stored: TypeAlias = PackedLinear | QuantizedLinear | QuantizedEmbedding | Bf16Linear | Bf16Embedding
SHARED_INPUTS = "shared_"  # how the operator's inputs of the shared expert begin


@dataclass(frozen=True)
class ExpertMemory:
    """Bytes; of a BitNet model, which has no experts, those of its ternary linear layers.

    F is the number of FFN parameters of all MoTE layers, 3 * hidden * intermediate * layers; E experts.

    Attributes:
        full_precision: E experts in BF16, E * 2F: what MoE-LLaVA holds (MoTE paper, section 4).
        formula: a BF16 shared expert and E ternary ones at 2 bits, 2F + E * F / 4 (the same section).
        packed: packed ternary weights of this export, with the padding of the layout; of a baseline its routed experts.
        scales_and_routers: float32 scales of the ternary experts, and routers, of this export.
        shared: shared experts of this export as they are stored, with their scales and padding.
        packed_bits, shared_bits: bits a weight that `packed` and `shared` come to.
        packed_codes: `packed` at the bits of a code; a baseline's 3-bit codes are stored in 4.
        routed_rounding: as `shared_rounding`, of a baseline's routed experts; of ternary linear layers, each of which counts alike,
            what rounding them to ternary weights changed.
        has_experts: False for a BitNet model.
        shared_rounding: root mean square of what storing changed in the weights of the shared experts, in units of that of
            the weights; 0 where every weight of the checkpoint is kept.
    """

    full_precision: int
    formula: int
    packed: int
    scales_and_routers: int
    shared: int
    packed_bits: float
    shared_bits: float
    shared_rounding: float
    packed_codes: int = 0
    routed_rounding: float = 0.0
    has_experts: bool = True

    @property
    def total(self) -> int:
        return self.packed + self.scales_and_routers + self.shared


def expert_memory(packed_model: MoteModel) -> ExpertMemory:
    """Counts a model after the pack-ternary-experts pass."""
    layers = [module for module in packed_model.modules() if isinstance(module, PackedMoteLayer)]
    if not layers:
        baseline = [module for module in packed_model.modules() if isinstance(module, StockMoeLayer)]
        return _baseline_memory(baseline) if baseline else _ternary_memory(packed_model)
    experts = layers[0].experts
    parameters = 3 * experts.hidden_size * experts.intermediate_size * len(layers)
    inside = [named for layer in layers for named in layer.experts.named_buffers()]
    outside = [layer.shared_expert.state_dict().values() for layer in layers if layer.shared_expert is not None]
    packed = sum(layer.experts.gate_up_packed.nbytes + layer.experts.down_packed.nbytes for layer in layers)
    shared = _bytes(buffer for name, buffer in inside if name.startswith(SHARED_INPUTS)) + sum(map(_bytes, outside))
    return ExpertMemory(
        full_precision=full_precision_bytes(parameters, experts.num_experts),
        formula=mote_bytes(parameters, experts.num_experts),
        packed=packed,
        scales_and_routers=_bytes(buffer for name, buffer in inside if not name.startswith(SHARED_INPUTS)) - packed,
        shared=shared,
        packed_bits=8 * packed / (experts.num_experts * parameters),
        shared_bits=8 * shared / parameters,
        shared_rounding=sum((layer.experts.shared_rounding for layer in layers), Rounding()).relative,
        packed_codes=packed,
    )


def _baseline_memory(layers: Sequence[StockMoeLayer]) -> ExpertMemory:
    first = layers[0]
    parameters = 3 * first.hidden_size * first.intermediate_size * len(layers)
    linears = [module for layer in layers for module in layer.modules() if isinstance(module, QuantizedLinear)]
    routers = sum(layer.router.nbytes for layer in layers)
    packed = sum(stored_bytes(linear) for linear in linears) or first.num_experts * parameters * FLOAT32_BYTES
    return ExpertMemory(
        full_precision=full_precision_bytes(parameters, first.num_experts),
        formula=mote_bytes(parameters, first.num_experts),
        packed=packed,
        scales_and_routers=routers + sum(linear.quantized_weight().scale_bytes for linear in linears),
        shared=0,
        packed_bits=8 * packed / (first.num_experts * parameters),
        shared_bits=0.0,
        shared_rounding=0.0,
        packed_codes=sum(linear.quantized_weight().code_bytes for linear in linears) or packed,
        routed_rounding=sum((linear.rounding for linear in linears), Rounding()).relative,
    )


def _ternary_memory(packed_model: MoteModel) -> ExpertMemory:
    """Of a BitNet model, which has no experts."""
    linears = [module for module in packed_model.modules() if isinstance(module, PackedTernaryLinear)]
    parameters = sum(linear.in_features * linear.out_features for linear in linears)
    packed = sum(linear.packed.nbytes for linear in linears)
    return ExpertMemory(
        full_precision=full_precision_bytes(parameters, 1),
        formula=parameters // 4,
        packed=packed,
        scales_and_routers=sum(linear.scale.nbytes for linear in linears),
        shared=0,
        packed_bits=8 * packed / parameters,
        shared_bits=0.0,
        shared_rounding=0.0,
        packed_codes=packed,
        routed_rounding=sum((Rounding(linear.error**2, 1.0) for linear in linears), Rounding()).relative,
        has_experts=False,
    )


@dataclass(frozen=True)
class StoredPart:
    """Weights outside of the experts in fewer than 32 bits.

    Attributes:
        part: "linear", "lm_head", "vision" or "embedding".
        format: "bf16", "int8" or "int4".
        parameters: weights of the part.
        bytes: codes as they are stored, and scales at 16 bits; ONNX Runtime's operators hold scales of 32 bits.
        rounding: as `ExpertMemory.shared_rounding`.
    """

    part: str
    format: str
    parameters: int
    bytes: int
    rounding: float


def stored_parts(model: MoteModel) -> tuple[StoredPart, ...]:
    """Counts a model after the quantize passes; empty where they did nothing."""
    experts = {module for layer in model.modules() if isinstance(layer, StockMoeLayer) for module in layer.modules()}
    parts: dict[str, list[Stored]] = {"linear": [], "lm_head": [], "vision": [], "embedding": []}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedEmbedding | Bf16Embedding):
            parts["embedding"].append(module)
        elif isinstance(module, PackedLinear | QuantizedLinear | Bf16Linear) and module not in experts:
            parts["lm_head" if name == "lm_head" else "vision" if "vision_tower" in name else "linear"].append(module)
    return tuple(
        StoredPart(
            part,
            stored_format(modules[0]),
            sum(num_weights(module) for module in modules),
            sum(weight_bytes(module) for module in modules),
            sum((module.rounding for module in modules), Rounding()).relative,
        )
        for part, modules in parts.items()
        if modules
    )


def stored_format(module: Stored) -> str:
    """bf16, int8, int4 or int3."""
    if isinstance(module, PackedLinear):
        return module.format.name
    return "bf16" if isinstance(module, Bf16Linear | Bf16Embedding) else f"int{module.bits}"


def num_weights(module: Stored) -> int:
    """Of a matrix, without padding."""
    if isinstance(module, PackedLinear):
        return module.out_features * module.in_features
    return module.weight.numel() if isinstance(module, Bf16Linear | Bf16Embedding) else module.codes.numel()


def weight_bytes(module: Stored) -> int:
    """Of a matrix and its scales, with the padding of the packed layout."""
    if isinstance(module, PackedLinear):
        return module.weight.nbytes + (0 if module.scale is None else module.scale.nbytes)
    if isinstance(module, Bf16Linear | Bf16Embedding):
        return module.weight.nbytes
    return stored_bytes(module) + module.quantized_weight().scale_bytes


def stored_bytes(module: QuantizedLinear | QuantizedEmbedding) -> int:
    """Of the codes: one or two a byte."""
    return module.codes.numel() if module.bits == 8 else -(-module.codes.numel() // 2)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
