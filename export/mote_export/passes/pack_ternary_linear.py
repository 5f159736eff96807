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
from mote_export.model import quantizers
from mote_export.packing import LAYOUT_VERSION, MAX_WIDTH, PACKINGS
from mote_export.packing.ternary import TernaryWeight, as_ternary
from mote_export.passes.base import ModulePass
from mote_export.weights import read
from mote_runtime.errors import MoteError

DAMAGED_CODE = 3  # two bits hold 0, 1 and 2, for -1, 0 and 1


class PackedTernaryLinear(nn.Module):
    """One ternary linear layer as one operator; buffers and attributes as in docs/operator.md.

    forward: x float32 [..., K] to [..., N], after `norm` where there is one.

    `error` is what rounding to ternary weights changed, as in `TernaryWeight`: 0 unless that was asked for.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, weight: TernaryWeight, packing: str, norm: nn.Module | None) -> None:
        super().__init__()
        codes, scale, self.error = weight
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


def ternary_weight(module: nn.Module, force: bool = False) -> TernaryWeight:
    """Codes [N, K] and scale [1] of a BitNet layer, which computes (codes @ q) * d * scale for activations q and their step d.

    Args:
        module: an `AutoBitLinear` or a `BitLinear`.
        force: round weights of a layer without online quantization that are not ternary.

    Raises:
        MoteError: the weights are not ternary, or damaged.
    """
    if isinstance(module, BitLinear):
        shifts = 2 * torch.arange(VALUES_PER_ITEM, dtype=torch.uint8)
        codes = (module.weight[None] >> shifts[:, None, None]) & 3  # quarters of the rows lie above each other
        damaged = int((codes == DAMAGED_CODE).sum())
        if damaged:
            raise MoteError(f"{damaged} of its {codes.numel()} weights are not -1, 0 or 1: their two bits are 11")
        return TernaryWeight(codes.flatten(0, 1).to(torch.int8) - 1, 1.0 / module.weight_scale.float(), 0.0)
    assert isinstance(module, AutoBitLinear)
    weight = read(module.weight)
    if module.online_quant:
        codes, scale = quantizers.ternarize_matrix(weight)
        return TernaryWeight(codes, scale.reshape(1), 0.0)
    codes, unit, error = as_ternary(weight, force)
    return TernaryWeight(codes, (unit * module.weight_scale.float()).reshape(1), error)


def _check(module: nn.Module, force: bool, found: list[TernaryWeight]) -> str | None:
    """None, after the weights were put into `found`; or the reason why the layer cannot be rewritten."""
    if module.bias is not None:
        return "it has a bias, which the operator has not"
    widest = max(module.in_features, module.out_features)
    if widest > MAX_WIDTH:
        return f"it has {widest} rows or columns, at most {MAX_WIDTH} can be packed"
    try:
        found.append(ternary_weight(module, force))
    except MoteError as error:
        return str(error)
    scale = found[0].scale
    if not (bool(torch.isfinite(scale).all()) and float(scale) >= 0):
        return f"its scale is {float(scale)}, expected a finite number of at least 0"
    return None


def pack_ternary_linear(packing: str = DEFAULT_PACKING, *, ternarize: bool = False) -> ModulePass:
    """The pass for weights stored in `packing`, a key of `PACKINGS`.

    Args:
        ternarize: round weights that should be ternary and are not, instead of refusing the layer; `PackedTernaryLinear.error` says
            what that changed.
    """

    found: list[TernaryWeight] = []  # of the last layer that was checked, so that its weights are read once

    def check(module: nn.Module) -> str | None:
        found.clear()
        return _check(module, ternarize, found)

    def rewrite(module: nn.Module) -> nn.Module:
        return PackedTernaryLinear(found.pop(), packing, module.rms_norm)  # type: ignore[arg-type]

    return ModulePass(
        name="pack-ternary-linear",
        pattern=lambda module: isinstance(module, AutoBitLinear | BitLinear),
        check=check,
        rewrite=rewrite,
    )
