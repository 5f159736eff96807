"""PackedTernaryExperts -> one ONNX node `mote::TernaryMoE` (the torch op stays the reference; only its spelling changes)."""

import torch
from torch import Tensor, nn

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
        # ONNX has no booleans among attributes.
        self.attributes = {
            name: int(value) if isinstance(value, bool) else value for name, value in experts.attributes.items()
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
