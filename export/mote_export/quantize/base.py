"""What a quantizer makes of a matrix: integer codes and a scale for each group of consecutive inputs of a row."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from mote_export.defaults import DEFAULT_QUANTIZER, DEFAULT_SHARED_GROUP_SIZE
from mote_export.packing import dequantize
from mote_export.packing.rounding import round_to_scale, rows_at_once
from mote_runtime.errors import MoteError

Bits = Literal[8, 4, 3]
GROUP_SIZES = (32, 64, 128, 256)
PER_ROW = 0
SCALE_BYTES = 2  # bfloat16
# The least and the greatest code. Those of 8 bits are symmetric, as the operators that multiply int8 by int8 want them.
CODES: dict[int, tuple[int, int]] = {8: (-127, 127), 4: (-8, 7), 3: (-4, 3)}


@dataclass(frozen=True)
class WeightFormat:
    """How a matrix is stored.

    Attributes:
        bits: of a code: 8, 4 or 3.
        method: a key of `quantize.METHODS`.
        group_size: consecutive inputs of a row that share a scale: 32, 64, 128, 256, or 0 for a scale a row. None: 0 for 8 bits,
            whose operators know nothing else, and 128 for fewer.

    Raises:
        MoteError: another value.
    """

    bits: Bits
    method: str = DEFAULT_QUANTIZER
    group_size: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("bits", self.bits, get_args(Bits)),
            ("group_size", self.group_size, (None, PER_ROW, *GROUP_SIZES)),
        ):
            if isinstance(value, bool) or value not in known:
                raise MoteError(f"{name} of quantized weights is {value!r}, expected {', '.join(map(repr, known))}.")

    @property
    def codes(self) -> tuple[int, int]:
        """The least and the greatest code."""
        return CODES[self.bits]

    @property
    def wanted_group(self) -> int:
        """`group_size`, or the default of `bits`; 0 for a scale a row."""
        if self.group_size is None:
            return PER_ROW if self.bits == 8 else DEFAULT_SHARED_GROUP_SIZE
        return self.group_size


@dataclass(frozen=True)
class Rounding:
    """What a format changed in weights: sums of the squares of the changes and of the weights."""

    changed: float = 0.0
    weights: float = 0.0

    @classmethod
    def of(cls, weights: Tensor, rounded: Tensor) -> "Rounding":
        """From weights of one shape before and after, some rows at a time."""
        result = cls()
        count = rows_at_once(weights)
        for before, after in zip(weights.detach().split(count), rounded.split(count), strict=True):
            result += cls._of_some(before, after)
        return result

    @classmethod
    def _of_some(cls, weights: Tensor, rounded: Tensor) -> "Rounding":
        exact = weights.double()
        squares = float(exact.square().sum())
        return cls(float(exact.sub_(rounded).square_().sum()), squares)

    def __add__(self, other: "Rounding") -> "Rounding":
        return Rounding(self.changed + other.changed, self.weights + other.weights)

    @property
    def relative(self) -> float:
        """Root mean square change, in units of the weights' root mean square; 0 where every weight is kept."""
        return math.sqrt(self.changed / self.weights) if self.changed else 0.0


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized matrix.

    Attributes:
        codes: int8 [N, K].
        scale: bfloat16 [N, ceil(K / group_size)]; the codes are made for the rounded scale.
        group_size: inputs that share a scale, K for a scale a row; the last group may be shorter.
        bits: of a code.
    """

    codes: Tensor
    scale: Tensor
    group_size: int
    bits: int

    def dequantize(self) -> Tensor:
        """codes * scale: float32 [N, K], the weights that every runtime computes with."""
        return dequantize(self.codes, self.scale, self.group_size)

    def rounding(self, weight: Tensor) -> Rounding:
        """What became of `weight` [N, K]."""
        result, count = Rounding(), rows_at_once(weight)
        parts = (tensor.split(count) for tensor in (weight.detach(), self.codes, self.scale))
        for some, codes, scale in zip(*parts, strict=True):
            result += Rounding._of_some(some, dequantize(codes, scale, self.group_size))
        return result

    @property
    def code_bytes(self) -> int:
        return -(-self.codes.numel() * self.bits // 8)

    @property
    def scale_bytes(self) -> int:
        return self.scale.numel() * SCALE_BYTES


# (weight [N, K] in float32 or bfloat16, group size, least code, greatest code) to scales bfloat16 [N, ceil(K / group size)].
ChooseScale = Callable[[Tensor, int, int, int], Tensor]


def fitting_group(inputs: int, wanted: int) -> int:
    """The group size for stock operators, whose groups divide the number of inputs.

    Returns:
        The greatest of `GROUP_SIZES` that is at most `wanted` and divides `inputs`; 0, a scale a row, where none does.
    """
    return max((size for size in GROUP_SIZES if size <= wanted and inputs % size == 0), default=PER_ROW)


def quantize_with(choose_scale: ChooseScale, weight: Tensor, bits: int, group_size: int) -> QuantizedWeight:
    """Rounds `weight` [N, K] to the scales that a method chooses; `group_size` 0 is a scale a row.

    Raises:
        MoteError: the weights contain NaN or infinity, or are empty.
    """
    if weight.dim() != 2 or not weight.numel():
        raise MoteError(
            f"weights of shape {list(weight.shape)} cannot be quantized, expected a matrix [outputs, inputs]."
        )
    weight = weight.detach()
    least, greatest = CODES[bits]
    group = group_size or weight.shape[1]
    scale = choose_scale(weight, group, least, greatest)
    if not bool(scale.isfinite().all()):  # NaN and infinity are the greatest of their group
        raise MoteError("weights to be quantized contain NaN or infinity.")
    return QuantizedWeight(round_to_scale(weight, scale, group, least, greatest), scale, group, bits)
