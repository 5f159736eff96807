"""MoTE as a transformers model: configuration, quantizers, layer, model and up-cycling."""

from mote_export.model import auto
from mote_export.model.bitnet import BitnetSettings
from mote_export.model.configuration import MoeSettings, MoteConfig, MoteTextConfig
from mote_export.model.layer import MoteLayer, RoutedExperts, TernaryExperts, router_load_balancing_loss
from mote_export.model.modeling import MoteForCausalLM, MoteForConditionalGeneration, MoteModel
from mote_export.model.surgery import find_gated_mlps
from mote_export.model.upcycling import upcycle

auto.register()

__all__ = [
    "BitnetSettings",
    "MoeSettings",
    "MoteConfig",
    "MoteForCausalLM",
    "MoteForConditionalGeneration",
    "MoteLayer",
    "MoteModel",
    "MoteTextConfig",
    "RoutedExperts",
    "TernaryExperts",
    "find_gated_mlps",
    "router_load_balancing_loss",
    "upcycle",
]
