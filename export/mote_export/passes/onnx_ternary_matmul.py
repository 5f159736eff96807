"""PackedTernaryLinear -> its norm, if it has one, and one ONNX node `mote::TernaryMatMul`."""

from torch import Tensor, nn

from mote_export.passes.base import ModulePass
from mote_export.passes.onnx_node import onnx_node
from mote_export.passes.pack_ternary_linear import PackedTernaryLinear


class OnnxTernaryMatMul(nn.Module):
    """Emits the node of docs/operator.md. Only torch.onnx.export can run it."""

    packed: Tensor
    scale: Tensor

    def __init__(self, linear: PackedTernaryLinear) -> None:
        super().__init__()
        self.norm, self.attributes = linear.norm, linear.attributes
        self.register_buffer("packed", linear.packed)
        self.register_buffer("scale", linear.scale)

    def forward(self, x: Tensor) -> Tensor:
        normed = x if self.norm is None else self.norm(x)
        shape = (*x.shape[:-1], self.attributes["out_features"])
        return onnx_node("TernaryMatMul", [normed, self.packed, self.scale], self.attributes, shape)


def _rewrite(module: nn.Module) -> nn.Module:
    assert isinstance(module, PackedTernaryLinear)
    return OnnxTernaryMatMul(module)


ONNX_TERNARY_MATMUL = ModulePass(
    name="onnx-ternary-matmul",
    pattern=lambda module: isinstance(module, PackedTernaryLinear),
    check=lambda module: None,
    rewrite=_rewrite,
)
