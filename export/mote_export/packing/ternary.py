"""Weights that are ternary already, up to one number: their codes and that number, or what it costs to make them so."""

from typing import NamedTuple

import torch
from torch import Tensor

from mote_runtime.errors import MoteError

MAX_STEPS = 32  # of the search for a scale; each lowers the error, a handful suffices


class TernaryWeight(NamedTuple):
    """W is codes * scale, up to `error`.

    Attributes:
        codes: int8, shape of W, in {-1, 0, 1}.
        scale: float32 scalar, at least 0.
        error: root mean square of what rounding changed, in units of the weights' root mean square; 0 where W is ternary.
    """

    codes: Tensor
    scale: Tensor
    error: float


class NotTernaryError(MoteError):
    """Weights are not -1, 0 or 1 times one number; the message says how many, by how much, and what rounding them costs.

    Attributes:
        count: of weights that are none of the three.
        deviation: the largest distance of a weight from the nearest of the three, in units of the scale.
        error: as `TernaryWeight.error`, of rounding them.
    """

    def __init__(self, count: int, total: int, scale: float, deviation: float, error: float) -> None:
        self.count, self.deviation, self.error = count, deviation, error
        super().__init__(
            f"{count} of its {total} weights are not -1, 0 or 1 times one number: the largest deviation is "
            f"{deviation * scale:.3g}, {deviation:.3g} of the nearest such number, {scale:.6g}; --ternarize rounds them, with a "
            f"relative error of {error:.3g}"
        )


def as_ternary(weight: Tensor, force: bool = False) -> TernaryWeight:
    """The codes of weights that are ternary up to one scale.

    Args:
        weight: of any shape and float dtype. It is ternary if its nonzero elements have one magnitude, bit for bit.
        force: round other weights, to the codes and the scale of least squared error that Lloyd's iteration finds (S. Lloyd, Least
            squares quantization in PCM, 1982), from the largest magnitude and from BitNet's mean |W|.

    Raises:
        NotTernaryError: the weights are not ternary, and `force` is False.
        MoteError: they are empty, or contain NaN or infinity.
    """
    weight = weight.detach().float()
    if not weight.numel():
        raise MoteError(f"weights of shape {list(weight.shape)} have no ternary form: they are empty")
    if not bool(torch.isfinite(weight).all()):
        raise MoteError("its weights contain NaN or infinity")
    magnitude = weight.abs()
    unit = magnitude.amax()
    is_ternary = (magnitude == 0) | (magnitude == unit)
    if bool(is_ternary.all()):
        return TernaryWeight(weight.sign().to(torch.int8), unit, 0.0)
    codes, scale, squares = min((_fit(magnitude, start) for start in (unit, magnitude.mean())), key=lambda fit: fit[2])
    error = (squares / float(magnitude.double().square().sum())) ** 0.5
    if not force:
        deviation = float(torch.minimum(magnitude, (magnitude - scale).abs()).amax() / scale)
        count = int((~is_ternary).sum())
        raise NotTernaryError(count, weight.numel(), float(scale), deviation, error)
    return TernaryWeight((codes * weight.sign()).to(torch.int8), scale, error)


def _fit(magnitude: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, float]:
    """Bits, scale and the sum of squared errors where the nearest of 0 and `scale`, and the mean of what is nearest, agree."""
    bits = magnitude > scale / 2
    for _ in range(MAX_STEPS):
        scale = magnitude[bits].double().mean().float()
        closer = magnitude > scale / 2
        if torch.equal(closer, bits):
            break
        bits = closer
    return bits, scale, float((magnitude - bits * scale).double().square().sum())
