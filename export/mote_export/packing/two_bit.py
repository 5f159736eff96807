"""The `2bit` layout, version 1 (docs/layout.md): lines of 64 bytes, each 16 rows x 16 inputs in four 2-bit planes."""

import numpy as np
from numpy.typing import NDArray

LAYOUT_VERSION = 1
TILE = 16  # rows of a line, and inputs of a line
PLANES = 4
GROUP = TILE // PLANES  # consecutive inputs that lie side by side in a plane
LINE = 64  # bytes
ZERO_CODE = 1  # the code of t = 0


def tiles(size: int) -> int:
    """Number of tiles that cover `size` rows or inputs."""
    return -(-size // TILE)


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
    if ternary.size and (ternary.min() < -1 or ternary.max() > 1):
        raise ValueError(f"ternary weights lie in -1..1, found {int(ternary.min())}..{int(ternary.max())}")
    *lead, rows, cols = ternary.shape
    padding = [(0, 0)] * len(lead) + [(0, -rows % TILE), (0, -cols % TILE)]
    codes: NDArray[np.uint8] = np.pad((ternary + 1).astype(np.uint8), padding, constant_values=ZERO_CODE)
    # [..., nb, r, kb, p, j] -> [..., nb, kb, r, j, p]
    codes = codes.reshape(*lead, tiles(rows), TILE, tiles(cols), PLANES, GROUP)
    codes = np.moveaxis(codes, (-5, -3, -4, -1, -2), (-5, -4, -3, -2, -1))
    packed = np.bitwise_or.reduce(codes << (2 * np.arange(PLANES, dtype=np.uint8)), axis=-1)
    return np.ascontiguousarray(packed.reshape(*lead, tiles(rows), tiles(cols), LINE))


def unpack_2bit(packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.int8]:
    """The inverse of `pack_2bit`: int8 [..., rows, cols]. Code 3, which is never written, reads as 2.

    Raises:
        ValueError: the shape of `packed` does not fit rows x cols.
    """
    *lead, row_tiles, col_tiles, line = packed.shape
    if (row_tiles, col_tiles, line) != (tiles(rows), tiles(cols), LINE):
        raise ValueError(
            f"packed shape is {packed.shape}, expected [..., {tiles(rows)}, {tiles(cols)}, {LINE}] for {rows} x {cols}"
        )
    lines = packed.reshape(*lead, row_tiles, col_tiles, TILE, 1, GROUP)
    shifts = (2 * np.arange(PLANES, dtype=np.uint8)).reshape(PLANES, 1)
    ternary = ((lines >> shifts) & 3).astype(np.int8) - 1  # [..., nb, kb, r, p, j]
    ternary = np.moveaxis(ternary, -3, -4).reshape(*lead, row_tiles * TILE, col_tiles * TILE)
    return np.ascontiguousarray(ternary[..., :rows, :cols])


def pack_gate_up(gate: NDArray[np.int8], up: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Packs gate and up, each ternary [..., I, H], interleaved by block of rows: uint8 [..., ceil(I/16), 2, ceil(H/16), 64]."""
    return np.stack([pack_2bit(gate), pack_2bit(up)], axis=-3)


def unpack_gate_up(packed: NDArray[np.uint8], rows: int, cols: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """The inverse of `pack_gate_up`: gate and up, int8 [..., rows, cols] each."""
    return unpack_2bit(packed[..., 0, :, :], rows, cols), unpack_2bit(packed[..., 1, :, :], rows, cols)
