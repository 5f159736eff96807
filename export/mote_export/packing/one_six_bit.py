"""The `1.6bit` layout (docs/layout.md): lines of 16 rows x 20 inputs; a byte is five codes as digits to the base of 3."""

import numpy as np
from numpy.typing import NDArray

from mote_export.packing.lines import LANES, check_ternary, from_lines, from_planes, pack_planes

PLANES = 5
INPUTS = LANES * PLANES  # of a line
ZERO_CODE = 1  # the code of t = 0
GREATEST = 3**PLANES - 1  # byte of five codes 2; greater ones are never written and read as this
POWERS = 3 ** np.arange(PLANES, dtype=np.uint32)
# ternary value of each plane for each byte, int8 [5, 256]
DIGITS = (np.minimum(np.arange(256), GREATEST) // POWERS[:, None] % 3).astype(np.int8) - np.int8(1)


def pack_1_6bit(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Packs ternary matrices.

    Args:
        ternary: integers in {-1, 0, 1}, [..., N, K].

    Returns:
        uint8 [..., ceil(N/16), ceil(K/20), 64].

    Raises:
        ValueError: a value outside of {-1, 0, 1}.
    """
    ternary = np.asarray(ternary)
    check_ternary(ternary)
    return pack_planes(ternary, PLANES, ZERO_CODE, _join_digits)


def _join_digits(planes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    words = planes[..., 0].copy()
    for plane in range(1, PLANES):
        words += planes[..., plane] * POWERS[plane]
    return words


def unpack_1_6bit(packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.int8]:
    """The inverse of `pack_1_6bit`: int8 [..., rows, cols]. A byte above 242, which is never written, reads as 242.

    Raises:
        ValueError: the shape of `packed` does not fit rows x cols.
    """
    words = from_lines(packed, rows, cols, INPUTS)
    planes = np.empty((*words.shape, PLANES), np.uint32)
    for plane in range(PLANES):
        planes[..., plane] = DIGITS[plane].take(words.view(np.uint8)).view(np.uint32)
    return from_planes(planes, rows, cols).view(np.int8)
