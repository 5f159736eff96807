"""PackedLinear -> one ONNX node `mote::QuantizedMatMul`."""

from torch import Tensor, nn

from mote_export.passes.base import ModulePass
from mote_export.passes.onnx_node import onnx_node
from mote_export.passes.pack_linear import PackedLinear


class OnnxQuantizedMatMul(nn.Module):
    """Emits the node of docs/operator.md. Only torch.onnx.export can run it."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, linear: PackedLinear) -> None:
        super().__init__()
        self.attributes = linear.attributes
        self.register_buffer("weight", linear.weight)
        self.register_buffer("scale", linear.scale)
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.attributes["out_features"])
        return onnx_node("QuantizedMatMul", [x, self.weight, self.scale, self.bias], self.attributes, shape)


def _rewrite(module: nn.Module) -> nn.Module:
    assert isinstance(module, PackedLinear)
    return OnnxQuantizedMatMul(module)


ONNX_PACKED_LINEAR = ModulePass(
    name="onnx-packed-linear",
    pattern=lambda module: isinstance(module, PackedLinear),
    check=lambda module: None,
    rewrite=_rewrite,
)
