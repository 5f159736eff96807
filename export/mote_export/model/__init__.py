"""MoTE as a transformers model: configuration, quantizers, layer, model and up-cycling."""

from mote_export.model import auto
from mote_export.model.configuration import MoeSettings, MoteConfig
from mote_export.model.layer import MoteLayer, TernaryExperts, router_load_balancing_loss
from mote_export.model.modeling import MoteForConditionalGeneration
from mote_export.model.surgery import find_gated_mlps
from mote_export.model.upcycling import upcycle

auto.register()

__all__ = [
    "MoeSettings",
    "MoteConfig",
    "MoteForConditionalGeneration",
    "MoteLayer",
    "TernaryExperts",
    "find_gated_mlps",
    "router_load_balancing_loss",
    "upcycle",
]
