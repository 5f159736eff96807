"""Linear layers and the embedding -> integer codes with scales, and torch's own statement of what the runtimes compute with them.

The weights are the same everywhere: code * scale. What a runtime's stock operator does to activations is its own, so a
`QuantizedLinear` can compute in either way, and verification asks for that of the runtime it looks at.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_export.model import MoteModel
from mote_export.model.quantizers import INT8_MAX
from mote_export.packing.rounding import in_groups
from mote_export.passes.base import ModulePass
from mote_export.passes.pack_linear import pack_linear
from mote_export.passes.pack_ternary_experts import OUTSIDE, PackOptions
from mote_export.quantize.base import GROUP_SIZES, QuantizedWeight, Rounding, WeightFormat
from mote_export.quantize.model import LINEAR_PARTS, PARTS, VISION, quantize_matrix
from mote_export.weights import check_finite, read

Activations = Literal["float32", "int8-by-block", "int8-by-token"]
DEFAULT_BLOCK = 128  # inputs in a block of ONNX Runtime's operators where the weights have a scale a row
INT8_STEPS = 255


class QuantizedLinear(nn.Module):
    """y = W x + b with W = codes * scale.

    Buffers: codes int8 [N, K], scale bfloat16 [N, G], bias float32 [N] or None.

    Attributes:
        group_size: inputs that share a scale, K for a scale a row.
        bits: of a code; 3-bit codes are stored as 4-bit ones by both runtimes.
        activations: how `forward` treats its input, see `round_activations`.

    forward: float32 [..., K] to [..., N].
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None, rounding: Rounding | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.codes.shape
        self.group_size, self.bits = weight.group_size, weight.bits
        self.activations: Activations = "float32"
        self.rounding = rounding or Rounding()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    @property
    def block_size(self) -> int:
        """Inputs in a block of ONNX Runtime's operators, which is a power of two."""
        return self.group_size if self.group_size in GROUP_SIZES else DEFAULT_BLOCK

    def quantized_weight(self) -> QuantizedWeight:
        return QuantizedWeight(self.codes, self.scale, self.group_size, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        used = round_activations(x, self.activations, self.block_size)
        return F.linear(used, self.quantized_weight().dequantize(), self.bias)


class QuantizedEmbedding(nn.Module):
    """Rows of a table whose values are codes * scale; buffers as in `QuantizedLinear`. forward: ids [...] to float32 [..., K]."""

    codes: Tensor
    scale: Tensor

    def __init__(self, weight: QuantizedWeight, rounding: Rounding | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.codes.shape
        self.group_size, self.bits = weight.group_size, weight.bits
        self.rounding = rounding or Rounding()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scale", weight.scale)

    def quantized_weight(self) -> QuantizedWeight:
        return QuantizedWeight(self.codes, self.scale, self.group_size, self.bits)

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        rows = QuantizedWeight(self.codes[flat], self.scale[flat], self.group_size, self.bits).dequantize()
        return rows.view(*ids.shape, self.embedding_dim)


def round_activations(x: Tensor, how: Activations, block_size: int) -> Tensor:
    """The activations [..., K] that a stock operator multiplies the weights with, as float32.

    "int8-by-block" is com.microsoft::MatMulNBits with accuracy_level 4: in each block of inputs, multiples of its greatest absolute
    value / 127. "int8-by-token" is XNNPACK's dynamic quantization: 256 even steps from the least to the greatest value of a row, 0
    being one of them. Both were found equal to the runtimes' results up to the order of sums (tests/test_quantize.py).
    """
    if how == "float32":
        return x
    rows = x.reshape(-1, x.shape[-1])
    rounded = _by_block(rows, block_size) if how == "int8-by-block" else _by_token(rows)
    return rounded.view_as(x)


def _by_block(rows: Tensor, block_size: int) -> Tensor:
    blocks = in_groups(rows, block_size)
    greatest = blocks.abs().amax(dim=2, keepdim=True)
    inverse = torch.where(greatest == 0, 0.0, INT8_MAX / greatest)
    return ((blocks * inverse).round() * (greatest / INT8_MAX)).flatten(1)[:, : rows.shape[1]]


def _by_token(rows: Tensor) -> Tensor:
    least, greatest = rows.amin(dim=1, keepdim=True).clamp(max=0.0), rows.amax(dim=1, keepdim=True).clamp(min=0.0)
    step = ((greatest - least) / INT8_STEPS).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-128 - (least / step).round()).clamp(-128, 127)
    return (((rows * (1.0 / step)).round() + zero).clamp(-128, 127) - zero) * step


def set_activations(model: nn.Module, how: Activations) -> None:
    """Makes every `QuantizedLinear` of `model` compute as a runtime does; ONNX Runtime keeps those of 4-bit weights in float32."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.activations = "float32" if how == "int8-by-block" and module.bits < 8 else how


def concatenate_quantized(linears: Iterable[QuantizedLinear]) -> QuantizedLinear:
    """One layer whose outputs are those of `linears`, which have the same inputs and groups, one after another."""
    several = list(linears)
    first = several[0]
    weight = QuantizedWeight(
        torch.cat([linear.codes for linear in several]),
        torch.cat([linear.scale for linear in several]),
        first.group_size,
        first.bits,
    )
    biases = [linear.bias for linear in several if linear.bias is not None]
    result = QuantizedLinear(weight, torch.cat(biases) if biases else None)
    result.activations = first.activations
    return result


def quantized(linear: nn.Linear, form: WeightFormat, part: str) -> QuantizedLinear:
    stored = read(linear.weight)
    weight = quantize_matrix(stored, form, part)
    bias = None if linear.bias is None else read(linear.bias)
    return QuantizedLinear(weight, bias, weight.rounding(stored))


class Bf16Linear(nn.Module):
    """y = W x + b in the runtime's own operators, which make float32 of W, bfloat16 [N, K], each time or when a model is opened."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, self.rounding = _bfloat16(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if linear.bias is None else read(linear.bias).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float(), self.bias)


class Bf16Embedding(nn.Module):
    """Rows of a table of bfloat16 [V, K]. forward: ids [...] to float32 [..., K]."""

    weight: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        weight, self.rounding = _bfloat16(embedding.weight)
        self.register_buffer("weight", weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()


def _bfloat16(parameter: Tensor) -> tuple[Tensor, Rounding]:
    """The values of a parameter, and what rounding them changed."""
    stored = read(parameter)
    weight = stored.bfloat16()
    check_finite(parameter, weight)
    return weight, Rounding() if stored.dtype == torch.bfloat16 else Rounding.of(stored, weight)


def quantize_passes(model: MoteModel, options: PackOptions, *, stock: bool = False) -> list[ModulePass]:
    """The passes that `options` ask for, to be applied to the whole model, before those of the experts.

    Args:
        stock: linear layers for the runtimes' own operators, instead of `mote::quantized_matmul`.
    """
    passes = []
    for parts, name in ((LINEAR_PARTS, options.linear), ((VISION,), options.vision)):
        if name == OUTSIDE:
            continue
        modules: dict[nn.Module, str] = {module: part for part in parts for module in PARTS[part](model)}
        passes.append(_stock_linear(modules, name, options) if stock else pack_linear(modules, options.packed(name)))
    if options.embedding != OUTSIDE:
        passes.append(_embedding(model, options))
    return passes


def _stock_linear(parts: Mapping[nn.Module, str], name: str, options: PackOptions) -> ModulePass:
    """The pass for the keys of `parts`, plain linear layers; others, such as ternary ones, stay."""
    form = options.weight_format(name)

    def rewrite(module: nn.Module) -> nn.Module:
        assert isinstance(module, nn.Linear)
        return Bf16Linear(module) if form is None else quantized(module, form, parts[module])

    return ModulePass(
        name="quantize-linear",
        pattern=lambda module: type(module) is nn.Linear and module in parts,
        check=lambda module: None,
        rewrite=rewrite,
    )


def _embedding(model: MoteModel, options: PackOptions) -> ModulePass:
    """The pass for the embedding of tokens; a head that is tied to it keeps the weights it has."""
    embedding, form = model.get_input_embeddings(), options.weight_format(options.embedding)

    def rewrite(module: nn.Module) -> nn.Module:
        assert isinstance(module, nn.Embedding)
        if form is None:
            return Bf16Embedding(module)
        stored = read(module.weight)
        weight = quantize_matrix(stored, form, "embedding")
        return QuantizedEmbedding(weight, weight.rounding(stored))

    return ModulePass("quantize-embedding", lambda module: module is embedding, lambda module: None, rewrite)
