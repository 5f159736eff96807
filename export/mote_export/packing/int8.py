"""The `int8` format of the shared expert (docs/layout.md, docs/operator.md): a code a byte, a bfloat16 scale a row."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mote_export.packing.lines import LANES, from_lines, from_planes, to_lines, to_planes
from mote_export.packing.rounding import absmax_scale, round_to_scale

INPUTS = LANES
GREATEST = 127


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row to multiples of its scale.

    Args:
        weight: [N, K], float32 or bfloat16.

    Returns:
        codes: int8 [N, K] in -127..127. scale: bfloat16 [N, 1]; the codes are made for the rounded scale.
    """
    scale = absmax_scale(weight, weight.shape[1], GREATEST)
    return round_to_scale(weight, scale, weight.shape[1], -GREATEST, GREATEST), scale


def pack_int8(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int8 [..., N, K] to lines uint8 [..., ceil(N/16), ceil(K/4), 64]."""
    return to_lines(to_planes(np.ascontiguousarray(codes).view(np.uint8), 1, 0)[..., 0])


def unpack_int8(packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.int8]:
    """The inverse of `pack_int8`. Raises ValueError where the shape of `packed` does not fit rows x cols."""
    return from_planes(from_lines(packed, rows, cols, INPUTS)[..., None], rows, cols).view(np.int8)
