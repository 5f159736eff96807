"""The `2bit` layout (docs/layout.md): lines of 16 rows x 16 inputs in four planes of 2 bits."""

import numpy as np
from numpy.typing import NDArray

from mote_export.packing.lines import LANES, check_ternary, from_lines, from_planes, join_bits, pack_planes

PLANES = 4
INPUTS = LANES * PLANES  # of a line
ZERO_CODE = 1  # the code of t = 0
BITS = 2
SHIFTS = BITS * np.arange(PLANES, dtype=np.uint32)


def pack_2bit(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Packs ternary matrices.

    Args:
        ternary: integers in {-1, 0, 1}, [..., N, K].

    Returns:
        uint8 [..., ceil(N/16), ceil(K/16), 64].

    Raises:
        ValueError: a value outside of {-1, 0, 1}.
    """
    ternary = np.asarray(ternary)
    check_ternary(ternary)
    return pack_planes(ternary, PLANES, ZERO_CODE, lambda planes: join_bits(planes, BITS))


def unpack_2bit(packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.int8]:
    """The inverse of `pack_2bit`: int8 [..., rows, cols]. Code 3, which is never written, reads as 2.

    Raises:
        ValueError: the shape of `packed` does not fit rows x cols.
    """
    words = from_lines(packed, rows, cols, INPUTS)
    planes = (words[..., None] >> SHIFTS) & np.uint32(0x03030303)
    return from_planes(planes, rows, cols).view(np.int8) - np.int8(1)
