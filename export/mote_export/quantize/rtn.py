"""`rtn`, round to nearest: the greatest weight of a group gets the greatest code."""

from torch import Tensor

from mote_export.packing.rounding import absmax_scale


def choose_scale(weight: Tensor, group_size: int, least: int, greatest: int) -> Tensor:
    """max|w| / greatest of each group; so `least` stays unused where it is -greatest - 1."""
    return absmax_scale(weight, group_size, greatest)
