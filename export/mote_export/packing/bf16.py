"""The `bf16` format of the shared expert (docs/layout.md): bfloat16 weights, as bit patterns in uint16."""

import numpy as np
from numpy.typing import NDArray

from mote_export.packing.lines import LANES, from_lines, from_planes, to_lines, to_planes

INPUTS = LANES // 2


def pack_bf16(bits: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Bit patterns [..., N, K] to lines uint8 [..., ceil(N/16), ceil(K/2), 64], little endian."""
    halves = np.ascontiguousarray(bits).astype("<u2", copy=False).view(np.uint8)
    return to_lines(to_planes(halves, 1, 0)[..., 0])


def unpack_bf16(packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.uint16]:
    """The inverse of `pack_bf16`. Raises ValueError where the shape of `packed` does not fit rows x cols."""
    halves = from_planes(from_lines(packed, rows, cols, INPUTS)[..., None], rows, 2 * cols)
    return halves.view("<u2").astype(np.uint16, copy=False)
