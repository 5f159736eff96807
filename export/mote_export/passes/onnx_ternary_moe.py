"""PackedTernaryExperts -> one ONNX node `mote::TernaryMoE` (the torch op stays the reference; only its spelling changes)."""

from torch import Tensor, nn

from mote_export.passes.base import ModulePass
from mote_export.passes.onnx_node import onnx_node
from mote_export.passes.pack_ternary_experts import PackedTernaryExperts


class OnnxTernaryMoE(nn.Module):
    """Emits the node of docs/operator.md. Only torch.onnx.export can run it."""

    def __init__(self, experts: PackedTernaryExperts) -> None:
        super().__init__()
        self.input_names, self.attributes = experts.input_names, experts.attributes
        for name in self.input_names:
            self.register_buffer(name, getattr(experts, name))

    def forward(self, x: Tensor) -> Tensor:
        inputs = [getattr(self, name) for name in self.input_names]
        return onnx_node("TernaryMoE", [x, *inputs], self.attributes, x.shape)


def _rewrite(module: nn.Module) -> nn.Module:
    assert isinstance(module, PackedTernaryExperts)
    return OnnxTernaryMoE(module)


ONNX_TERNARY_MOE = ModulePass(
    name="onnx-ternary-moe",
    pattern=lambda module: isinstance(module, PackedTernaryExperts),
    check=lambda module: None,
    rewrite=_rewrite,
)
