"""Packed layouts (docs/layout.md) as pure functions: quantize, pack, unpack. A new one is one file here and one line below."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mote_export.packing import bf16, int4, int8, one_six_bit, two_bit
from mote_export.packing.bf16 import pack_bf16, unpack_bf16
from mote_export.packing.int4 import pack_int4, quantize_int4, unpack_int4
from mote_export.packing.int8 import pack_int8, quantize_int8, unpack_int8
from mote_export.packing.lines import LAYOUT_VERSION, MAX_WIDTH, ROWS, tiles
from mote_export.packing.one_six_bit import pack_1_6bit, unpack_1_6bit
from mote_export.packing.two_bit import pack_2bit, unpack_2bit

Array = NDArray[Any]


@dataclass(frozen=True)
class Packing:
    """A format of weights in lines.

    Attributes:
        pack: values [..., N, K] to lines uint8 [..., ceil(N/16), ceil(K/inputs), 64]. Values are ternary or quantized integers in
            int8, or bit patterns of bfloat16 in uint16.
        unpack: (lines, N, K) to values.
        inputs: of a line.
    """

    pack: Callable[[Array], NDArray[np.uint8]]
    unpack: Callable[[NDArray[np.uint8], int, int], Array]
    inputs: int


@dataclass(frozen=True)
class SharedFormat:
    """A format of the shared expert.

    Attributes:
        quantize: (weight [N, K], group size) to values for `packing`, and scales bfloat16 [N, G] or None: round to nearest.
        packing: of the values.
        bits: of an integer code, for the other methods of mote_export.quantize; None for bfloat16 values.
    """

    quantize: Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
    packing: Packing
    bits: int | None


PACKINGS: dict[str, Packing] = {
    "2bit": Packing(pack_2bit, unpack_2bit, two_bit.INPUTS),
    "1.6bit": Packing(pack_1_6bit, unpack_1_6bit, one_six_bit.INPUTS),
}
SHARED_FORMATS: dict[str, SharedFormat] = {
    "bf16": SharedFormat(
        lambda weight, _: (weight.bfloat16().view(torch.uint16), None),
        Packing(pack_bf16, unpack_bf16, bf16.INPUTS),
        None,
    ),
    "int8": SharedFormat(lambda weight, _: quantize_int8(weight), Packing(pack_int8, unpack_int8, int8.INPUTS), 8),
    "int4": SharedFormat(quantize_int4, Packing(pack_int4, unpack_int4, int4.INPUTS), 4),
}


def interleave(gate: Array, up: Array) -> Array:
    """Packed gate and up, each [..., nb, kb, 64], in blocks of rows that follow each other: [..., nb, 2, kb, 64]."""
    return np.stack([gate, up], axis=-3)


def pack_gate_up(gate: Array, up: Array, packing: Packing = PACKINGS["2bit"]) -> NDArray[np.uint8]:
    """Packs gate and up, each [..., I, H], interleaved by block of rows: uint8 [..., ceil(I/16), 2, ceil(H/inputs), 64]."""
    return interleave(packing.pack(gate), packing.pack(up))


def unpack_gate_up(
    packed: NDArray[np.uint8], rows: int, cols: int, packing: Packing = PACKINGS["2bit"]
) -> tuple[Array, Array]:
    """The inverse of `pack_gate_up`: gate and up, [..., rows, cols] each."""
    return packing.unpack(packed[..., 0, :, :], rows, cols), packing.unpack(packed[..., 1, :, :], rows, cols)


def dequantize(values: Tensor, scale: Tensor | None, group_size: int) -> Tensor:
    """The float32 weights [N, K] that `SharedFormat.quantize` made values and scales of."""
    if scale is None:
        return values.view(torch.bfloat16).float()
    one_each = scale.float() if scale.shape[1] == 1 else scale.float().repeat_interleave(group_size, dim=1)
    return values.float() * one_each[:, : values.shape[1]]


def pack_scales(scale: Tensor) -> Tensor:
    """Scales [N, G] of rows and groups to [ceil(N/16), G, 16], padded with 0."""
    rows, groups = scale.shape
    padded = torch.nn.functional.pad(scale, (0, 0, 0, -rows % ROWS))
    return padded.view(tiles(rows, ROWS), ROWS, groups).transpose(1, 2).contiguous()


def unpack_scales(packed: Tensor, rows: int) -> Tensor:
    """The inverse of `pack_scales`, in float32: [rows, G]."""
    return packed.float().transpose(1, 2).reshape(-1, packed.shape[1])[:rows]


__all__ = [
    "LAYOUT_VERSION",
    "MAX_WIDTH",
    "PACKINGS",
    "ROWS",
    "SHARED_FORMATS",
    "Array",
    "Packing",
    "SharedFormat",
    "dequantize",
    "interleave",
    "pack_1_6bit",
    "pack_2bit",
    "pack_bf16",
    "pack_gate_up",
    "pack_int4",
    "pack_int8",
    "pack_scales",
    "quantize_int4",
    "quantize_int8",
    "tiles",
    "unpack_1_6bit",
    "unpack_2bit",
    "unpack_bf16",
    "unpack_gate_up",
    "unpack_int4",
    "unpack_int8",
    "unpack_scales",
]
