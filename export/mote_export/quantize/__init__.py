"""Post-training quantization of what is not ternary (docs/quantization.md). A new method is a file here and a line in matrix.py."""

from mote_export.quantize.base import (
    GROUP_SIZES,
    QuantizedWeight,
    Rounding,
    WeightFormat,
    fitting_group,
)
from mote_export.quantize.matrix import METHODS, quantize
from mote_export.quantize.model import PARTS, PartReport, QuantizeOptions, QuantizeReport, quantize_model_

__all__ = [
    "GROUP_SIZES",
    "METHODS",
    "PARTS",
    "PartReport",
    "QuantizeOptions",
    "QuantizeReport",
    "QuantizedWeight",
    "Rounding",
    "WeightFormat",
    "fitting_group",
    "quantize",
    "quantize_model_",
]
