"""Groups of weights and their rounding to multiples of a scale: what the integer formats and every quantizer share."""

import torch
from torch import Tensor

from mote_export.packing.lines import tiles


def in_groups(weight: Tensor, group_size: int) -> Tensor:
    """[N, K] to float32 [N, ceil(K / group_size), group_size], padded with 0 where the last group is shorter."""
    rows, cols = weight.shape
    groups = tiles(cols, group_size)
    padded = torch.nn.functional.pad(weight.float(), (0, groups * group_size - cols))
    return padded.view(rows, groups, group_size)


def absmax_scale(weight: Tensor, group_size: int, greatest: int) -> Tensor:
    """The scale that gives the greatest weight of each group the code `greatest`: bfloat16 [N, G]."""
    return (in_groups(weight, group_size).abs().amax(dim=2) / float(greatest)).bfloat16()


def round_to_scale(weight: Tensor, scale: Tensor, group_size: int, least: int, greatest: int) -> Tensor:
    """The codes nearest to `weight`, halves to even; 0 where the scale is 0.

    Args:
        weight: [N, K], float32 or bfloat16.
        scale: bfloat16 [N, ceil(K / group_size)].

    Returns:
        int8 [N, K] in `least`..`greatest`.
    """
    rows, cols = weight.shape
    divisor = scale.float().unsqueeze(2)
    codes = (in_groups(weight, group_size) / divisor).round().clamp(least, greatest)
    codes = torch.where(divisor == 0, 0.0, codes).to(torch.int8)
    return codes.view(rows, -1)[:, :cols].contiguous()
