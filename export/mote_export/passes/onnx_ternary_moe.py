"""PackedTernaryExperts -> one ONNX node `mote::TernaryMoE` (the torch op stays the reference; only its spelling changes)."""

from typing import Any

import torch
from torch import Tensor, nn

from mote_export.packing import LAYOUT_VERSION
from mote_export.passes.base import ModulePass
from mote_export.passes.pack_ternary_experts import PackedTernaryExperts

DOMAIN = "mote"
OP_TYPE = "TernaryMoE"
OP_VERSION = 1


class OnnxTernaryMoE(nn.Module):
    """Emits the node of docs/operator.md. Only torch.onnx.export can run it."""

    def __init__(self, experts: PackedTernaryExperts) -> None:
        super().__init__()
        for name, buffer in experts.named_buffers():
            self.register_buffer(name, buffer)
        self.attributes: dict[str, Any] = {
            "num_experts": experts.num_experts,
            "top_k": experts.top_k,
            "normalize_topk": int(experts.normalize_topk),
            "intermediate_size": experts.intermediate_size,
            "activation": "silu",
            "packing": "2bit",
            "layout_version": LAYOUT_VERSION,
        }

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{OP_TYPE}",
            [x, *self.buffers()],
            self.attributes,
            dtype=x.dtype,
            shape=x.shape,
            version=OP_VERSION,
        )
        return y


def _rewrite(module: nn.Module) -> nn.Module:
    assert isinstance(module, PackedTernaryExperts)
    return OnnxTernaryMoE(module)


ONNX_TERNARY_MOE = ModulePass(
    name="onnx-ternary-moe",
    pattern=lambda module: isinstance(module, PackedTernaryExperts),
    check=lambda module: None,
    rewrite=_rewrite,
)
