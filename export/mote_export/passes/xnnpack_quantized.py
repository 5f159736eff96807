"""QuantizedLinear, QuantizedEmbedding -> what ExecuTorch runs: torchao's operators, which XNNPACK's partitioner takes for its own
quantized layers, and a lookup of bytes.

XNNPACK has no linear layer with integer weights and float activations that the partitioner (executorch 1.5) would use: activations
become int8, row by row. ExecuTorch's own quantized embeddings are in a library that neither its Python runners nor those of mote
load, so the rows of the embedding are looked up with `aten::embedding` and multiplied by their scales, which gives the same values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_export.passes.base import ModulePass
from mote_export.passes.portable import INT4_BASE, INT4_OF_A_BYTE, INT4_OFFSET, Bytes
from mote_export.passes.quantize_linear import QuantizedEmbedding, QuantizedLinear
from mote_export.quantize.base import GROUP_SIZES

INT4_RANGE, INT8_RANGE = (-8, 7), (-128, 127)  # how XNNPACK's partitioner tells them apart


class XnnpackLinear(nn.Module):
    """int8 per row, int4 by groups, in the operators of torchao's int8-dynamic-activation quantization.

    XNNPACK's 4-bit weights have groups of a multiple of 32 inputs; codes with a scale a row are stored as 8 bits.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None

    def __init__(self, linear: QuantizedLinear) -> None:
        super().__init__()
        self.group_size = linear.group_size
        is_int4 = linear.bits < 8 and linear.group_size in GROUP_SIZES
        self.least, self.greatest = INT4_RANGE if is_int4 else INT8_RANGE
        self.register_buffer("codes", linear.codes)
        self.register_buffer("scale", linear.scale.float())
        self.register_buffer("zero_point", torch.zeros_like(linear.scale, dtype=torch.int8))
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        from torchao.quantization.quant_primitives import dequantize_affine

        weight = dequantize_affine(
            self.codes,
            (1, self.group_size),
            self.scale,
            self.zero_point,
            torch.int8,
            self.least,
            self.greatest,
            output_dtype=torch.float32,
        )
        return F.linear(_dynamically_quantized(x), weight, self.bias)


def _dynamically_quantized(x: Tensor) -> Tensor:
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    row = (*[1] * (x.dim() - 1), x.shape[-1])
    scale, zero_point = choose_qparams_affine(
        x, MappingType.ASYMMETRIC, row, torch.int8, *INT8_RANGE, zero_point_dtype=torch.int8
    )
    codes = quantize_affine(x, row, scale, zero_point, torch.int8, *INT8_RANGE)
    result: Tensor = dequantize_affine(codes, row, scale, zero_point, torch.int8, *INT8_RANGE, output_dtype=x.dtype)
    return result


class LookedUpEmbedding(nn.Module):
    """Codes, two a byte for 4 bits, and scales of the rows that are asked for, in ExecuTorch's portable kernels."""

    codes: Tensor
    scale: Tensor

    def __init__(self, embedding: QuantizedEmbedding) -> None:
        super().__init__()
        self.width, self.group_size = embedding.embedding_dim, embedding.group_size
        self.unpack = None if embedding.bits == 8 else Bytes(INT4_OF_A_BYTE, INT4_BASE, INT4_OFFSET)
        codes = embedding.codes
        self.register_buffer("codes", codes if self.unpack is None else self.unpack.pack(codes.numpy()))
        self.register_buffer("scale", embedding.scale.float())

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.codes)
        values = rows.to(torch.float32) if self.unpack is None else self.unpack(rows)[..., : self.width]
        grouped = values.unflatten(-1, (-1, self.group_size)) * F.embedding(ids, self.scale).unsqueeze(-1)
        return grouped.flatten(-2)


XNNPACK_LINEAR = ModulePass(
    name="xnnpack-linear",
    pattern=lambda module: isinstance(module, QuantizedLinear),
    check=lambda module: None,
    rewrite=lambda module: XnnpackLinear(module),  # type: ignore[arg-type]
)
LOOKED_UP_EMBEDDING = ModulePass(
    name="looked-up-embedding",
    pattern=lambda module: isinstance(module, QuantizedEmbedding),
    check=lambda module: None,
    rewrite=lambda module: LookedUpEmbedding(module),  # type: ignore[arg-type]
)
