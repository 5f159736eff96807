"""What all formats of docs/layout.md share: lines of 64 bytes, which are 16 rows by 4 bytes; a byte holds a code from each plane.

Four codes that lie side by side in a plane are consecutive inputs, so they are moved as one uint32 here: shifting or multiplying it
shifts or multiplies each of its bytes as long as none overflows, and the order of the bytes in it never matters.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUT_VERSION = 1
LINE = 64  # bytes
ROWS = 16  # of a line
LANES = LINE // ROWS  # bytes of a row in a line
CODES_AT_ONCE = 1 << 19  # so that what packing makes of some rows on its way stays in the cache

MAX_WIDTH = 1 << 17  # of docs/operator.md: rows or inputs of a matrix, which keeps every integer sum inside int32


def tiles(size: int, tile: int) -> int:
    """Number of tiles that cover `size` rows or inputs."""
    return -(-size // tile)


def to_planes(codes: NDArray[np.uint8], planes: int, zero: int) -> NDArray[np.uint32]:
    """Codes [..., N, K] to uint32 [..., ceil(N/16), ceil(K/(4*planes)), 16, planes], padded with the code of zero.

    Each uint32 is four consecutive inputs of a row.
    """
    *lead, rows, cols = codes.shape
    inputs = LANES * planes
    padding = [(0, 0)] * len(lead) + [(0, -rows % ROWS), (0, -cols % inputs)]
    padded = np.ascontiguousarray(np.pad(codes, padding, constant_values=zero))
    words = padded.view(np.uint32).reshape(*lead, tiles(rows, ROWS), ROWS, tiles(cols, inputs), planes)
    return np.swapaxes(words, -2, -3)


def pack_planes(
    codes: NDArray[Any], planes: int, offset: int, join: Callable[[NDArray[np.uint32]], NDArray[np.uint32]]
) -> NDArray[np.uint8]:
    """Integers in lines, some rows at a time.

    Args:
        codes: [..., N, K]; with `offset`, which is the code of zero, added they lie in 0..255.
        join: makes of `to_planes`' result one uint32 a row: [..., 16, planes] to [..., 16].

    Returns:
        uint8 [..., ceil(N/16), ceil(K/(4*planes)), 64].
    """
    *lead, rows, cols = codes.shape
    words = np.empty((*lead, tiles(rows, ROWS), tiles(cols, LANES * planes), ROWS), np.uint32)
    row_tiles = max(1, CODES_AT_ONCE // (ROWS * max(1, cols)))
    for index in np.ndindex(*lead):
        for tile in range(0, tiles(rows, ROWS), row_tiles):
            some = codes[index][tile * ROWS : (tile + row_tiles) * ROWS]
            words[index][tile : tile + row_tiles] = join(to_planes((some + offset).astype(np.uint8), planes, offset))
    return to_lines(words)


def join_bits(planes: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    """Planes of codes of so many bits, [..., P], side by side in one word, the first in the lowest bits."""
    words = planes[..., 0].copy()
    for plane in range(1, planes.shape[-1]):
        words |= planes[..., plane] << np.uint32(bits * plane)
    return words


def from_planes(planes: NDArray[np.uint32], rows: int, cols: int) -> NDArray[np.uint8]:
    """The inverse of `to_planes`: codes [..., rows, cols]."""
    *lead, row_tiles, col_tiles, _, count = planes.shape
    words = np.ascontiguousarray(np.swapaxes(planes, -2, -3))
    codes = words.reshape(*lead, row_tiles * ROWS, col_tiles * count).view(np.uint8)
    return np.ascontiguousarray(codes[..., :rows, :cols])


def to_lines(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """One uint32 a row, [..., nb, kb, 16], as lines uint8 [..., nb, kb, 64]."""
    return np.ascontiguousarray(words).view(np.uint8)


def from_lines(packed: NDArray[np.uint8], rows: int, cols: int, inputs: int) -> NDArray[np.uint32]:
    """The inverse of `to_lines`.

    Raises:
        ValueError: the shape of `packed` does not fit rows x cols with `inputs` to a line.
    """
    expected = (tiles(rows, ROWS), tiles(cols, inputs), LINE)
    if packed.shape[-3:] != expected:
        raise ValueError(
            f"packed shape is {packed.shape}, expected [..., {', '.join(map(str, expected))}] for {rows} x {cols}"
        )
    return np.ascontiguousarray(packed).view(np.uint32)


def check_ternary(ternary: NDArray[np.int8]) -> None:
    """Raises ValueError for a value outside of {-1, 0, 1}."""
    if ternary.size and (ternary.min() < -1 or ternary.max() > 1):
        raise ValueError(f"ternary weights lie in -1..1, found {int(ternary.min())}..{int(ternary.max())}")
