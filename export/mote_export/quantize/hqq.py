"""`hqq`: scales that make the squared change of a group's weights small, found without calibration data by torchao.

torchao alternates between the codes for a scale and the least-squares scale for those codes (the scale-only, symmetric form of
half-quadratic quantization), from max|w| / 2^(bits - 1) on.
"""

import torch
from torch import Tensor

from mote_export.packing.rounding import absmax_scale, in_groups, round_to_scale
from mote_runtime.errors import MoteError


def choose_scale(weight: Tensor, group_size: int, least: int, greatest: int) -> Tensor:
    """torchao's scale where it is better than that of `rtn`, group by group: the alternation may end in a worse minimum."""
    try:
        from torchao.quantization.quant_primitives import _choose_qparams_and_quantize_scale_only_hqq
    except ImportError as error:
        raise MoteError(
            "quantizer 'hqq' needs torchao, which is not installed: pip install 'mote[executorch]'."
        ) from error
    groups = in_groups(weight, group_size)
    _, found = _choose_qparams_and_quantize_scale_only_hqq(groups.flatten(1), [1, group_size], least, greatest)
    hqq, rtn = found.bfloat16(), absmax_scale(weight, group_size, greatest)
    errors = [_squared_change(groups, scale, least, greatest) for scale in (hqq, rtn)]
    return torch.where(errors[0] <= errors[1], hqq, rtn)


def _squared_change(groups: Tensor, scale: Tensor, least: int, greatest: int) -> Tensor:
    """Of each group, [N, G]."""
    width = groups.shape[2]
    codes = round_to_scale(groups.flatten(1), scale, width, least, greatest).view_as(groups)
    return (codes * scale.float().unsqueeze(2) - groups).square().sum(dim=2)
