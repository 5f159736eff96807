"""A large nn.Linear -> `MatMul` with the weight as ONNX wants it, [K, N], transposed here (ONNX).

torch's exporter transposes as well, but keeps all that it has transposed in memory until the file is written.
"""

import torch
from torch import Tensor, nn

from mote_export.passes.base import ModulePass
from mote_export.scratch import SMALLEST


class OnnxLinear(nn.Module):
    """y = x W + b with `weight_transposed` float32 [K, N] and `bias` float32 [N] or None."""

    weight_transposed: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight_transposed", linear.weight.detach().T.contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(x, self.weight_transposed)
        return y if self.bias is None else y + self.bias


def _rewrite(module: nn.Module) -> nn.Module:
    assert isinstance(module, nn.Linear)
    return OnnxLinear(module)


ONNX_LINEAR = ModulePass(
    name="onnx-linear",
    pattern=lambda module: type(module) is nn.Linear and module.weight.nbytes >= SMALLEST,
    check=lambda module: None,
    rewrite=_rewrite,
)
