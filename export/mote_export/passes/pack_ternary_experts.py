"""MoteLayer -> shared expert + one `mote::ternary_moe` with packed 2-bit weights; master weights are dropped."""

from typing import Any

import torch
from torch import Tensor, nn

from mote_export import ops  # noqa: F401  registers torch.ops.mote
from mote_export.model import MoteLayer, TernaryExperts
from mote_export.model.quantizers import ternarize
from mote_export.packing import LAYOUT_VERSION, pack_2bit, pack_gate_up
from mote_export.passes.base import ModulePass


class PackedTernaryExperts(nn.Module):
    """Router and routed experts as one operator; buffers and attributes in the shapes and order of docs/operator.md."""

    router: Tensor
    gate_up_packed: Tensor
    gate_up_scale: Tensor
    down_packed: Tensor
    down_scale: Tensor

    def __init__(self, layer: MoteLayer) -> None:
        super().__init__()
        experts = layer.experts
        self.num_experts, self.intermediate_size, self.hidden_size = experts.gate_proj.shape
        self.attributes: dict[str, Any] = {  # of docs/operator.md, for every spelling of the operator
            "num_experts": self.num_experts,
            "top_k": layer.settings.top_k,
            "normalize_topk": layer.settings.normalize_topk,
            "intermediate_size": self.intermediate_size,
            "activation": "silu",
            "packing": "2bit",
            "layout_version": LAYOUT_VERSION,
        }
        gate_up, gate_up_scale, down, down_scale = _pack(experts)
        self.register_buffer("router", layer.router.weight.detach().float().clone())
        self.register_buffer("gate_up_packed", gate_up)
        self.register_buffer("gate_up_scale", gate_up_scale)
        self.register_buffer("down_packed", down)
        self.register_buffer("down_scale", down_scale)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mote.ternary_moe(x, *self.buffers(), *self.attributes.values())
        return y


class PackedMoteLayer(nn.Module):
    """`MoteLayer` for inference: y = shared_expert(x) + experts(x)."""

    def __init__(self, layer: MoteLayer) -> None:
        super().__init__()
        self.shared_expert = layer.shared_expert
        self.experts = PackedTernaryExperts(layer)

    def forward(self, hidden_states: Tensor) -> Tensor:
        y: Tensor = self.shared_expert(hidden_states) + self.experts(hidden_states)
        return y


def _pack(experts: TernaryExperts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packs expert by expert, so that the codes of one expert at a time exist unpacked."""
    gate_up, down, gate_up_scale, down_scale = [], [], [], []
    for index in range(experts.gate_proj.shape[0]):
        (gate, gate_s), (up, up_s), (down_codes, down_s) = (
            ternarize(weight[index].detach()) for weight in (experts.gate_proj, experts.up_proj, experts.down_proj)
        )
        gate_up.append(torch.from_numpy(pack_gate_up(gate.to(torch.int8).numpy(), up.to(torch.int8).numpy())))
        down.append(torch.from_numpy(pack_2bit(down_codes.to(torch.int8).numpy())))
        gate_up_scale.append(torch.stack([gate_s, up_s]))
        down_scale.append(down_s)
    return torch.stack(gate_up), torch.stack(gate_up_scale), torch.stack(down), torch.stack(down_scale)


def _check(module: nn.Module) -> str | None:
    assert isinstance(module, MoteLayer)
    parameters = [module.router.weight, *module.experts.parameters()]
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        return "its router or experts contain NaN or infinity"
    return None


def _rewrite(module: nn.Module) -> nn.Module:
    assert isinstance(module, MoteLayer)
    return PackedMoteLayer(module)


PACK_TERNARY_EXPERTS = ModulePass(
    name="pack-ternary-experts",
    pattern=lambda module: isinstance(module, MoteLayer),
    check=_check,
    rewrite=_rewrite,
)
