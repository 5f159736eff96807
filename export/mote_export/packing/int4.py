"""The `int4` format of the shared expert (docs/layout.md, docs/operator.md): two codes a byte, a bfloat16 scale a group."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mote_export.packing.lines import LANES, from_lines, from_planes, join_bits, pack_planes
from mote_export.packing.rounding import absmax_scale, round_to_scale

PLANES = 2
INPUTS = LANES * PLANES  # of a line
OFFSET = 8  # the stored code of 0
LEAST, GREATEST = -8, 7
BITS = 4
SHIFTS = BITS * np.arange(PLANES, dtype=np.uint32)


def quantize_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Rounds each group of consecutive inputs of a row to multiples of its scale.

    Args:
        weight: [N, K], float32 or bfloat16.

    Returns:
        codes: int8 [N, K] in -8..7. scale: bfloat16 [N, ceil(K / group_size)]; the codes are made for the rounded scale.
    """
    scale = absmax_scale(weight, group_size, GREATEST)
    return round_to_scale(weight, scale, group_size, LEAST, GREATEST), scale


def pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int8 [..., N, K] in -8..7 to lines uint8 [..., ceil(N/16), ceil(K/8), 64].

    Raises:
        ValueError: a code outside of -8..7.
    """
    codes = np.asarray(codes)
    if codes.size and (codes.min() < LEAST or codes.max() > GREATEST):
        raise ValueError(f"int4 codes lie in {LEAST}..{GREATEST}, found {int(codes.min())}..{int(codes.max())}")
    return pack_planes(codes, PLANES, OFFSET, lambda planes: join_bits(planes, BITS))


def unpack_int4(packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.int8]:
    """The inverse of `pack_int4`. Raises ValueError where the shape of `packed` does not fit rows x cols."""
    words = from_lines(packed, rows, cols, INPUTS)
    planes = (words[..., None] >> SHIFTS) & np.uint32(0x0F0F0F0F)
    return from_planes(planes, rows, cols).view(np.int8) - np.int8(OFFSET)
