"""Rewrites on modules, applied before torch.export. One rewrite a file, each with pattern, check and rewrite."""

from mote_export.passes.base import ModulePass, PassError, apply_passes
from mote_export.passes.pack_linear import PackedFormat, PackedLinear, pack_linear
from mote_export.passes.pack_ternary_experts import (
    PackedMoteLayer,
    PackedTernaryExperts,
    PackOptions,
    pack_ternary_experts,
)
from mote_export.passes.pack_ternary_linear import PackedTernaryLinear, pack_ternary_linear
from mote_export.passes.quantize_linear import QuantizedEmbedding, QuantizedLinear, quantize_passes
from mote_export.passes.stock_moe import StockMoeLayer, stock_moe

__all__ = [
    "ModulePass",
    "PackOptions",
    "PackedFormat",
    "PackedLinear",
    "PackedMoteLayer",
    "PackedTernaryExperts",
    "PackedTernaryLinear",
    "PassError",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "StockMoeLayer",
    "apply_passes",
    "pack_linear",
    "pack_ternary_experts",
    "pack_ternary_linear",
    "quantize_passes",
    "stock_moe",
]
