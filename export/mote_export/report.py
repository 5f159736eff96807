"""Memory of the experts: by the formulas of the MoTE paper and by the bytes an export really holds."""

from dataclasses import dataclass

from mote_export.model import MoteForConditionalGeneration
from mote_export.passes import PackedMoteLayer

BF16_BYTES = 2
TERNARY_BYTES = 0.25  # 2 bits


@dataclass(frozen=True)
class ExpertMemory:
    """Bytes. F is the number of FFN parameters of all MoTE layers, 3 * hidden * intermediate * layers; E experts.

    Attributes:
        full_precision: E experts in BF16, E * 2F: what MoE-LLaVA holds (MoTE paper, section 4).
        formula: a BF16 shared expert and E ternary ones at 2 bits, 2F + E * F / 4 (the same section).
        packed: packed ternary weights of this export, with the padding of the layout.
        scales_and_routers: float32 scales and routers of this export.
        shared: shared experts of this export, in the dtype they are stored in.
    """

    full_precision: int
    formula: int
    packed: int
    scales_and_routers: int
    shared: int

    @property
    def total(self) -> int:
        return self.packed + self.scales_and_routers + self.shared


def formula_bytes(hidden_size: int, intermediate_size: int, layers: int, num_experts: int) -> tuple[int, int]:
    """(full_precision, formula) of `ExpertMemory`, in bytes."""
    parameters = 3 * hidden_size * intermediate_size * layers
    full_precision = num_experts * BF16_BYTES * parameters
    return full_precision, round(BF16_BYTES * parameters + num_experts * TERNARY_BYTES * parameters)


def expert_memory(packed_model: MoteForConditionalGeneration) -> ExpertMemory:
    """Counts a model after the pack-ternary-experts pass. The exports store the shared experts in float32."""
    layers = [module for module in packed_model.modules() if isinstance(module, PackedMoteLayer)]
    experts = layers[0].experts
    full_precision, formula = formula_bytes(
        experts.hidden_size, experts.intermediate_size, len(layers), experts.num_experts
    )
    packed = sum(layer.experts.gate_up_packed.nbytes + layer.experts.down_packed.nbytes for layer in layers)
    return ExpertMemory(
        full_precision=full_precision,
        formula=formula,
        packed=packed,
        scales_and_routers=sum(buffer.nbytes for layer in layers for buffer in layer.experts.buffers()) - packed,
        shared=sum(parameter.nbytes for layer in layers for parameter in layer.shared_expert.parameters()),
    )
