"""BitNet's linear layers in transformers -> one `mote::ternary_matmul` each.

transformers has two (transformers.integrations.bitnet). `AutoBitLinear` holds float weights: those of training, made ternary in
every forward pass (`online_quant`), or ternary ones beside a `weight_scale` that multiplies. `BitLinear` holds 2-bit weights of its
own layout and a `weight_scale` that divides. All quantize activations as docs/operator.md does, after an optional RMSNorm, which
stays a stock layer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.bitnet import VALUES_PER_ITEM, AutoBitLinear, BitLinear

from mote_export import ops  # noqa: F401  registers torch.ops.mote
from mote_export.defaults import DEFAULT_PACKING
from mote_export.model.quantizers import ternarize
from mote_export.packing import LAYOUT_VERSION, MAX_WIDTH, PACKINGS
from mote_export.passes.base import ModulePass


class PackedTernaryLinear(nn.Module):
    """One ternary linear layer as one operator; buffers and attributes as in docs/operator.md.

    forward: x float32 [..., K] to [..., N], after `norm` where there is one.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, packing: str, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = norm
        self.out_features, self.in_features = codes.shape
        self.attributes: dict[str, Any] = {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "packing": packing,
            "layout_version": LAYOUT_VERSION,
        }
        self.register_buffer("packed", torch.from_numpy(PACKINGS[packing].pack(codes.to(torch.int8).numpy())))
        self.register_buffer("scale", scale.float().reshape(1))

    def forward(self, x: Tensor) -> Tensor:
        normed = x if self.norm is None else self.norm(x)
        y: Tensor = torch.ops.mote.ternary_matmul(normed, self.packed, self.scale, *self.attributes.values())
        return y


def ternary_weight(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Codes [N, K], which may be other than -1, 0, 1 where the layer cannot be packed, and scale [1] of a BitNet layer.

    The layer computes (codes @ q) * d * scale for activations q and their step d.
    """
    if isinstance(module, BitLinear):
        shifts = 2 * torch.arange(VALUES_PER_ITEM, dtype=torch.uint8)
        codes = (module.weight[None] >> shifts[:, None, None]) & 3  # quarters of the rows lie above each other
        return codes.flatten(0, 1).to(torch.int8) - 1, 1.0 / module.weight_scale.float()
    assert isinstance(module, AutoBitLinear)
    weight = module.weight.detach().float()
    if module.online_quant:
        codes, scale = ternarize(weight)
        return codes, scale.reshape(1)
    unit = weight.abs().amax()
    codes = weight if unit == 0 else weight / unit
    return codes, (unit * module.weight_scale.float()).reshape(1)


def _check(module: nn.Module) -> str | None:
    if module.bias is not None:
        return "it has a bias, which the operator has not"
    codes, scale = ternary_weight(module)
    if max(codes.shape) > MAX_WIDTH:
        return f"it has {max(codes.shape)} rows or columns, at most {MAX_WIDTH} can be packed"
    is_ternary = (codes == 0) | (codes.abs() == 1)
    if not is_ternary.all():
        return (
            f"{int((~is_ternary).sum())} of its {codes.numel()} weights are not -1, 0 or 1 times one number, as those "
            "of a layer without online quantization must be"
        )
    if not (bool(torch.isfinite(scale).all()) and float(scale) >= 0):
        return f"its scale is {float(scale)}, expected a finite number of at least 0"
    return None


def pack_ternary_linear(packing: str = DEFAULT_PACKING) -> ModulePass:
    """The pass for weights stored in `packing`, a key of `PACKINGS`."""

    def rewrite(module: nn.Module) -> nn.Module:
        return PackedTernaryLinear(*ternary_weight(module), packing, module.rms_norm)  # type: ignore[arg-type]

    return ModulePass(
        name="pack-ternary-linear",
        pattern=lambda module: isinstance(module, AutoBitLinear | BitLinear),
        check=_check,
        rewrite=rewrite,
    )
