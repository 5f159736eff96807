"""tanh-approximated GELU -> its formula in elementary operations (ExecuTorch).

XNNPACK's partitioner (executorch 1.5) lowers `aten.gelu` to the exact GELU whatever its `approximate` argument says, which is
off by up to 5e-4 from the approximation that a model such as SigLIP was trained with.
"""

import math

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh

from mote_export.passes.base import ModulePass


class ExplicitGeluTanh(nn.Module):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (arXiv 1606.08415, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def _is_gelu_tanh(module: nn.Module) -> bool:
    return isinstance(module, GELUTanh) or (isinstance(module, nn.GELU) and module.approximate == "tanh")


EXPLICIT_GELU_TANH = ModulePass(
    name="explicit-gelu-tanh",
    pattern=_is_gelu_tanh,
    check=lambda module: None,
    rewrite=lambda module: ExplicitGeluTanh(),
)
