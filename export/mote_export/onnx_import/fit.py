"""The scale of a matrix that is ternary, or nearly, asked for piece by piece: it may be mapped, and larger than memory.

`mote_export.packing.ternary` does the same to a tensor in memory, at several times its size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mote_export.onnx_import.constants import Array
from mote_export.packing.lines import ROWS
from mote_export.packing.ternary import MAX_STEPS
from mote_runtime.errors import MoteError

PIECE = 1 << 20  # elements that are in memory as float32


@dataclass(frozen=True)
class Fit:
    """The nearest ternary matrix.

    Attributes:
        scale: at least 0; elements above half of it, in magnitude, are -1 or 1 times it, the others 0.
        count: of elements that are not -1, 0 or 1 times the largest magnitude, bit for bit; 0 for a ternary matrix.
        deviation: the largest distance of an element from what it becomes, in units of the scale.
        error: root mean square of these distances, in units of that of the elements.
    """

    scale: float
    count: int = 0
    deviation: float = 0.0
    error: float = 0.0


def fit_ternary(array: Array) -> Fit:
    """Scale and error of least squares, as `as_ternary` finds them for a tensor; the largest magnitude of a ternary matrix.

    Args:
        array: of two dimensions and any float or integer type.

    Raises:
        MoteError: it contains NaN or infinity.
    """
    unit, total, squares = 0.0, 0.0, 0.0
    for magnitude in _magnitudes(array):
        largest = float(magnitude.max())
        if not np.isfinite(largest):
            raise MoteError("its weights contain NaN or infinity")
        unit = max(unit, largest)
        total += float(magnitude.sum(dtype=np.float64))
        squares += float(np.square(magnitude, dtype=np.float64).sum())
    count = sum(int(np.count_nonzero((magnitude != 0) & (magnitude != unit))) for magnitude in _magnitudes(array))
    if not count:
        return Fit(unit)
    fits = [_lloyd(array, start) for start in (unit, float(np.float32(total / array.size)))]
    scale, rest, deviation = min(fits, key=lambda fit: fit[1])
    return Fit(scale, count, deviation / scale, (rest / squares) ** 0.5)


def ternary_codes(array: Array, scale: float) -> Iterator[NDArray[np.int8]]:
    """The codes of a matrix [N, K] with the scale of its `Fit`, int8, some rows at a time: a multiple of 16 but for the last."""
    half = np.float32(scale) / np.float32(2)
    rows = max(ROWS, PIECE // max(1, array.shape[1]) // ROWS * ROWS)
    for first in range(0, len(array), rows):
        piece = np.asarray(array[first : first + rows], np.float32)
        codes = (piece > half).view(np.int8) - (piece < -half).view(np.int8)
        yield np.ascontiguousarray(codes)


def _magnitudes(array: Array) -> Iterator[NDArray[np.float32]]:
    """In the order in which they lie in memory: the other one would read the whole of a map for each piece."""
    if abs(array.strides[0]) < abs(array.strides[1]):
        array = array.T
    rows = max(1, PIECE // max(1, array.shape[1]))
    for first in range(0, len(array), rows):
        yield np.abs(np.asarray(array[first : first + rows], np.float32))


def _lloyd(array: Array, scale: float) -> tuple[float, float, float]:
    """The scale at which the nearest of 0 and `scale`, and the mean of what is nearest, agree; the sum of squares of what is left,
    and the largest of it. One threshold takes in what a higher one does, so equal numbers of elements are equal elements."""
    count = -1
    for _ in range(MAX_STEPS):
        nearest, total = 0, 0.0
        for magnitude in _magnitudes(array):
            chosen = magnitude[magnitude > np.float32(scale) / np.float32(2)]
            nearest += chosen.size
            total += float(chosen.sum(dtype=np.float64))
        if nearest == count:
            break
        count = nearest
        scale = float(np.float32(total / nearest))
    rest, deviation = 0.0, 0.0
    for magnitude in _magnitudes(array):
        left = np.where(magnitude > np.float32(scale) / np.float32(2), np.abs(magnitude - np.float32(scale)), magnitude)
        rest += float(np.square(left, dtype=np.float64).sum())
        deviation = max(deviation, float(left.max()))
    return scale, rest, deviation
