"""Rewrites on modules, applied before torch.export. One rewrite a file, each with pattern, check and rewrite."""

from mote_export.passes.base import ModulePass, PassError, apply_passes
from mote_export.passes.pack_ternary_experts import PACK_TERNARY_EXPERTS, PackedMoteLayer, PackedTernaryExperts

__all__ = ["PACK_TERNARY_EXPERTS", "ModulePass", "PackedMoteLayer", "PackedTernaryExperts", "PassError", "apply_passes"]
