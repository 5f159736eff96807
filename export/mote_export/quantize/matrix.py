"""One matrix to integer codes and scales, by a method of the registry."""

from torch import Tensor

from mote_export.defaults import DEFAULT_QUANTIZER
from mote_export.quantize import hqq, rtn
from mote_export.quantize.base import CODES, PER_ROW, ChooseScale, QuantizedWeight, quantize_with
from mote_runtime.errors import MoteError

METHODS: dict[str, ChooseScale] = {"rtn": rtn.choose_scale, "hqq": hqq.choose_scale}


def quantize(weight: Tensor, bits: int, group_size: int = PER_ROW, method: str = DEFAULT_QUANTIZER) -> QuantizedWeight:
    """Integer codes and scales of a matrix.

    Args:
        weight: [N, K], float32 or bfloat16.
        bits: 8 (codes -127..127), 4 (-8..7) or 3 (-4..3).
        group_size: inputs that share a scale, 0 for a scale a row. Where it does not divide K, the last group is shorter.
        method: a key of `METHODS`.

    Raises:
        MoteError: unknown bits or method, or weights with NaN or infinity.
    """
    check_method(method)
    if bits not in CODES:
        raise MoteError(f"bits is {bits!r}, expected {', '.join(map(str, CODES))}.")
    return quantize_with(METHODS[method], weight, bits, group_size)


def check_method(method: str) -> None:
    if method not in METHODS:
        raise MoteError(f"quantizer is {method!r}, expected {', '.join(map(repr, METHODS))}.")
