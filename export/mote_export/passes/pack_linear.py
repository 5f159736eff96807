"""Plain linear layers -> one `mote::quantized_matmul` each, whose weights a runtime reads where the file is mapped.

The runtimes' own operators for quantized weights copy them into a layout of theirs while a model is opened; this one stores them
in the lines of docs/layout.md, which the kernels read as they are.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mote_export import ops
from mote_export.defaults import DEFAULT_QUANTIZER
from mote_export.packing import LAYOUT_VERSION, MAX_WIDTH, ROWS, SHARED_FORMATS, dequantize, pack_scales, tiles
from mote_export.packing.lines import LINE
from mote_export.packing.rounding import all_finite
from mote_export.passes.base import ModulePass
from mote_export.quantize.base import Rounding
from mote_export.quantize.matrix import METHODS, quantize
from mote_export.weights import read
from mote_runtime.errors import MoteError
from mote_runtime.manifest import GROUPED_SHARED_EXPERT, SHARED_GROUP_SIZES

WEIGHTS_AT_ONCE = 1 << 22  # 16 MiB of float32: a matrix of a vocabulary never exists in float32 as a whole
BY_ROWS = ("rtn",)  # methods that give a row the same codes whatever other rows are there
PER_ROW = 0


@dataclass(frozen=True)
class PackedFormat:
    """How the matrix of a linear layer is stored.

    Attributes:
        name: a key of `SHARED_FORMATS`: bf16, int8 or int4.
        group_size: inputs that share a scale in int4; other formats have 0.
        quantizer: how scales of integer weights are chosen, a key of `quantize.METHODS`.

    Raises:
        MoteError: a value that is not among those.
    """

    name: str
    group_size: int = PER_ROW
    quantizer: str = DEFAULT_QUANTIZER

    def __post_init__(self) -> None:
        groups = SHARED_GROUP_SIZES if self.name == GROUPED_SHARED_EXPERT else (PER_ROW,)
        for what, value, known in (
            ("format", self.name, tuple(SHARED_FORMATS)),
            ("group_size", self.group_size, groups),
            ("quantizer", self.quantizer, tuple(METHODS)),
        ):
            if value not in known:
                raise MoteError(f"{what} of packed weights is {value!r}, expected {', '.join(map(repr, known))}.")


class PackedWeight(NamedTuple):
    """A matrix [N, K] as the operator takes it.

    Attributes:
        lines: uint8 [ceil(N/16), ceil(K/C), 64], of docs/layout.md.
        scale: bfloat16 [ceil(N/16), G, 16], or None for bf16.
        out_features, in_features: N and K.
        format: of both.
        rounding: what became of the weights.
    """

    lines: Tensor
    scale: Tensor | None
    out_features: int
    in_features: int
    format: PackedFormat
    rounding: Rounding


def pack_weight(weight: Tensor, form: PackedFormat) -> PackedWeight:
    """Quantizes and packs a matrix, some rows at a time where the method allows it.

    Args:
        weight: [N, K], float32 or bfloat16.

    Raises:
        MoteError: the weights contain NaN or infinity, or numbers that bf16 cannot hold; or they are empty or no matrix.
    """
    if weight.dim() != 2 or not weight.numel():
        raise MoteError(f"weights of shape {list(weight.shape)} cannot be packed, expected a matrix [outputs, inputs].")
    rows, cols = weight.shape
    packing = SHARED_FORMATS[form.name].packing
    lines = torch.empty(tiles(rows, ROWS), tiles(cols, packing.inputs), LINE, dtype=torch.uint8)
    count = ROWS * max(1, WEIGHTS_AT_ONCE // (ROWS * cols))
    if form.quantizer not in BY_ROWS and SHARED_FORMATS[form.name].bits is not None:
        count = rows
    scales, rounding = [], Rounding()
    for some, some_lines in zip(weight.detach().split(count), lines.split(tiles(count, ROWS)), strict=True):
        values, scale, changed = _stored(some, form)
        some_lines.copy_(torch.from_numpy(packing.pack(values.numpy())))
        rounding += changed
        if scale is not None:
            scales.append(pack_scales(scale))
    return PackedWeight(lines, torch.cat(scales) if scales else None, rows, cols, form, rounding)


def _stored(weight: Tensor, form: PackedFormat) -> tuple[Tensor, Tensor | None, Rounding]:
    """Values for the packing, scales or None, and what became of the weights."""
    shared = SHARED_FORMATS[form.name]
    if shared.bits is not None:
        quantized = quantize(weight, shared.bits, form.group_size, form.quantizer)
        return quantized.codes, quantized.scale, quantized.rounding(weight)
    values, _ = shared.quantize(weight, PER_ROW)
    rounded = dequantize(values, None, PER_ROW)
    if not all_finite(rounded):
        raise MoteError("weights to be stored as bf16 contain NaN or infinity, or numbers that round to it.")
    return values, None, Rounding() if weight.dtype == torch.bfloat16 else Rounding.of(weight, rounded)


class PackedLinear(nn.Module):
    """A linear layer as one operator; buffers and attributes as in docs/operator.md, `mote::QuantizedMatMul`.

    Buffers: weight uint8 lines, scale bfloat16 or None, bias float32 [N] or None.

    forward: x float32 [..., K] to [..., N].
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self.format, self.rounding = weight.format, weight.rounding
        self.attributes: dict[str, Any] = {  # of docs/operator.md, for every spelling of the operator
            "in_features": self.in_features,
            "out_features": self.out_features,
            "format": weight.format.name,
            "group_size": weight.format.group_size,
            "layout_version": LAYOUT_VERSION,
        }
        self.register_buffer("weight", weight.lines)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    @classmethod
    def of(cls, linear: nn.Linear, form: PackedFormat) -> "PackedLinear":
        """From a plain layer, whose values may still be in a file. Raises as `pack_weight`."""
        bias = None if linear.bias is None else read(linear.bias)
        if bias is not None and not bool(torch.isfinite(bias).all()):
            raise MoteError("its bias contains NaN or infinity.")
        return cls(pack_weight(read(linear.weight), form), bias)

    def operator_inputs(self) -> list[Tensor | None]:
        """The operator's inputs after x, in order."""
        return [self.weight, self.scale, self.bias]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mote.quantized_matmul(x, *self.operator_inputs(), *self.attributes.values())
        return y


def can_concatenate(linears: Iterable[nn.Module]) -> bool:
    """Whether `concatenate_packed` takes these layers: blocks of 16 rows, in one format, of the same inputs."""
    several = list(linears)
    first = several[0]
    return isinstance(first, PackedLinear) and all(
        isinstance(linear, PackedLinear)
        and linear.format == first.format
        and linear.in_features == first.in_features
        and linear.out_features % ROWS == 0
        for linear in several
    )


def concatenate_packed(linears: Iterable[PackedLinear]) -> PackedLinear:
    """One layer whose outputs are those of `linears` one after another, bit for bit. They satisfy `can_concatenate`."""
    several = list(linears)
    first = several[0]
    scales = [linear.scale for linear in several if linear.scale is not None]
    biases = [torch.zeros(linear.out_features) if linear.bias is None else linear.bias for linear in several]
    weight = PackedWeight(
        torch.cat([linear.weight for linear in several]),
        torch.cat(scales) if scales else None,
        sum(linear.out_features for linear in several),
        first.in_features,
        first.format,
        sum((linear.rounding for linear in several), Rounding()),
    )
    return PackedLinear(weight, torch.cat(biases) if any(linear.bias is not None for linear in several) else None)


def pack_linear(modules: Collection[nn.Module], form: PackedFormat) -> ModulePass:
    """The pass for those plain linear layers of a model that are in `modules`.

    Layers of other types among them stay: they have operators of their own, or weights that mean something else.
    """
    chosen = {id(module) for module in modules}

    def check(module: nn.Module) -> str | None:
        assert isinstance(module, nn.Linear)
        if module.in_features > MAX_WIDTH or module.out_features > ops.MAX_ROWS:
            return (
                f"it has {module.out_features} x {module.in_features} weights, at most {ops.MAX_ROWS} x {MAX_WIDTH} can be "
                "packed"
            )
        return None

    def rewrite(module: nn.Module) -> nn.Module:
        assert isinstance(module, nn.Linear)
        return PackedLinear.of(module, form)

    return ModulePass(
        name="pack-linear",
        pattern=lambda module: type(module) is nn.Linear and id(module) in chosen,
        check=check,
        rewrite=rewrite,
    )
