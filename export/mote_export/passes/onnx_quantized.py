"""QuantizedLinear, QuantizedEmbedding -> `com.microsoft::MatMulNBits` and `com.microsoft::GatherBlockQuantized`.

4-bit weights meet float32 activations (accuracy_level 1 of MatMulNBits), so nothing but the weights is rounded. For 8-bit
ones ONNX Runtime 1.31 has no such kernel, it turns them into floats first, which takes many times as long as float32 weights do
(docs/quantization.md): there activations become int8, block by block (level 4).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_export.passes.base import ModulePass
from mote_export.passes.quantize_linear import DEFAULT_BLOCK, QuantizedEmbedding, QuantizedLinear
from mote_export.quantize.base import GROUP_SIZES, QuantizedWeight

MICROSOFT = "com.microsoft"
FLOAT32_ACTIVATIONS, INT8_ACTIVATIONS = 1, 4  # of MatMulNBits' accuracy_level
BYTE, NIBBLE = 8, 4
ROWS_AT_ONCE = 4096


def in_blocks(weight: QuantizedWeight, stored_bits: int) -> tuple[Tensor, Tensor, int]:
    """Codes and scales in the blocks of ONNX Runtime's operators.

    Returns:
        codes uint8 [N, ceil(K / block), block * bits / 8], the first of two nibbles in the low bits, with 2^(bits - 1) for 0, which
        is the operators' zero point if none is given; scales float32 [N, ceil(K / block)]; the block size.
    """
    rows, cols = weight.codes.shape
    block = weight.group_size if weight.group_size in GROUP_SIZES else DEFAULT_BLOCK
    blocks = -(-cols // block)
    # Some rows at a time: those of a vocabulary take gigabytes in anything wider than codes.
    codes = [_stored(some, blocks * block, stored_bits) for some in weight.codes.split(ROWS_AT_ONCE)]
    scale = weight.scale.float().expand(rows, blocks)
    return torch.cat(codes).view(rows, blocks, -1), scale.contiguous(), block


def _stored(codes: Tensor, width: int, bits: int) -> Tensor:
    """int8 [N, K] as uint8 [N, width * bits / 8]."""
    raised = (F.pad(codes, (0, width - codes.shape[1])).to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    return raised[:, ::2] | (raised[:, 1::2] << NIBBLE) if bits == NIBBLE else raised


class OnnxQuantizedLinear(nn.Module):
    """Emits MatMulNBits, and Add for a bias. Only torch.onnx.export can run it."""

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: QuantizedLinear) -> None:
        super().__init__()
        bits = BYTE if linear.bits == BYTE else NIBBLE
        codes, scale, block = in_blocks(linear.quantized_weight(), bits)
        self.out_features = linear.out_features
        self.attributes: dict[str, Any] = {
            "K": linear.in_features,
            "N": linear.out_features,
            "bits": bits,
            "block_size": block,
            "accuracy_level": INT8_ACTIVATIONS if bits == BYTE else FLOAT32_ACTIVATIONS,
        }
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.onnx.ops.symbolic(
            f"{MICROSOFT}::MatMulNBits",
            [x, self.codes, self.scale],
            self.attributes,
            dtype=torch.float32,
            shape=(*x.shape[:-1], self.out_features),
            version=1,
        )
        return y if self.bias is None else y + self.bias


class OnnxQuantizedEmbedding(nn.Module):
    """Emits GatherBlockQuantized. Only torch.onnx.export can run it."""

    codes: Tensor
    scale: Tensor

    def __init__(self, embedding: QuantizedEmbedding) -> None:
        super().__init__()
        width = embedding.embedding_dim
        bits = BYTE if embedding.bits == BYTE or width % 2 else NIBBLE  # rows of an odd width end inside a byte
        codes, scale, block = in_blocks(embedding.quantized_weight(), bits)
        self.width = width
        self.attributes: dict[str, Any] = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        self.register_buffer("codes", codes.flatten(1)[:, : width * bits // BYTE].contiguous())
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = torch.onnx.ops.symbolic(
            f"{MICROSOFT}::GatherBlockQuantized",
            [self.codes, ids, self.scale],
            self.attributes,
            dtype=torch.float32,
            shape=(*ids.shape, self.width),
            version=1,
        )
        return y


ONNX_QUANTIZED_LINEAR = ModulePass(
    name="onnx-quantized-linear",
    pattern=lambda module: isinstance(module, QuantizedLinear),
    check=lambda module: None,
    rewrite=lambda module: OnnxQuantizedLinear(module),  # type: ignore[arg-type]
)
ONNX_QUANTIZED_EMBEDDING = ModulePass(
    name="onnx-quantized-embedding",
    pattern=lambda module: isinstance(module, QuantizedEmbedding),
    check=lambda module: None,
    rewrite=lambda module: OnnxQuantizedEmbedding(module),  # type: ignore[arg-type]
)
