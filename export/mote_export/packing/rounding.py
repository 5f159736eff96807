"""Groups of weights and their rounding to multiples of a scale: what the integer formats and every quantizer share.

Matrices are taken some rows at a time: what is computed on the way stays in the cache, and no whole matrix exists in float32.
"""

import torch
from torch import Tensor

from mote_export.packing.lines import tiles

WEIGHTS_AT_ONCE = 1 << 18


def rows_at_once(weight: Tensor) -> int:
    """How many rows of [N, K] to take at a time; at least 1."""
    return max(1, WEIGHTS_AT_ONCE // max(1, weight.shape[1]))


def all_finite(weight: Tensor) -> bool:
    """Whether [N, K] contains neither NaN nor infinity. By the greatest magnitude, several times as fast as torch.isfinite."""
    return all(bool(some.float().abs().amax().isfinite()) for some in weight.split(rows_at_once(weight)))


def in_groups(weight: Tensor, group_size: int) -> Tensor:
    """[N, K] to float32 [N, ceil(K / group_size), group_size], padded with 0 where the last group is shorter.

    A view of `weight` where nothing is padded or converted.
    """
    rows, cols = weight.shape
    groups = tiles(cols, group_size)
    padding = groups * group_size - cols
    weight = weight.float()
    return (torch.nn.functional.pad(weight, (0, padding)) if padding else weight).reshape(rows, groups, group_size)


def absmax_scale(weight: Tensor, group_size: int, greatest: int) -> Tensor:
    """The scale that gives the greatest weight of each group the code `greatest`: bfloat16 [N, G]."""
    some_rows = weight.split(rows_at_once(weight))
    return torch.cat([(in_groups(some, group_size).abs().amax(2) / float(greatest)).bfloat16() for some in some_rows])


def round_to_scale(weight: Tensor, scale: Tensor, group_size: int, least: int, greatest: int) -> Tensor:
    """The codes nearest to `weight`, halves to even; 0 where the scale is 0.

    Args:
        weight: [N, K], float32 or bfloat16.
        scale: bfloat16 [N, ceil(K / group_size)].

    Returns:
        int8 [N, K] in `least`..`greatest`.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    count, cols = rows_at_once(weight), weight.shape[1]
    for some, some_scale, result in zip(weight.split(count), scale.split(count), codes.split(count), strict=True):
        divisor = some_scale.float().unsqueeze(2)
        rounded = (in_groups(some, group_size) / divisor).round_().clamp_(least, greatest)
        result.copy_(rounded.masked_fill_(divisor == 0, 0.0).flatten(1)[:, :cols])
    return codes
