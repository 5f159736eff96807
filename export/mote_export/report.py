"""Memory of the experts: by the formulas of the MoTE paper and by the bytes an export really holds."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from mote_export.memory import full_precision_bytes, mote_bytes
from mote_export.model import MoteModel
from mote_export.passes import PackedMoteLayer
from mote_export.quantize import Rounding

SHARED_INPUTS = "shared_"  # how the operator's inputs of the shared expert begin


@dataclass(frozen=True)
class ExpertMemory:
    """Bytes. F is the number of FFN parameters of all MoTE layers, 3 * hidden * intermediate * layers; E experts.

    Attributes:
        full_precision: E experts in BF16, E * 2F: what MoE-LLaVA holds (MoTE paper, section 4).
        formula: a BF16 shared expert and E ternary ones at 2 bits, 2F + E * F / 4 (the same section).
        packed: packed ternary weights of this export, with the padding of the layout.
        scales_and_routers: float32 scales of the ternary experts, and routers, of this export.
        shared: shared experts of this export as they are stored, with their scales and padding.
        packed_bits, shared_bits: bits a weight that `packed` and `shared` come to.
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

    @property
    def total(self) -> int:
        return self.packed + self.scales_and_routers + self.shared


def expert_memory(packed_model: MoteModel) -> ExpertMemory:
    """Counts a model after the pack-ternary-experts pass."""
    layers = [module for module in packed_model.modules() if isinstance(module, PackedMoteLayer)]
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
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
