"""Module surgery: finds the gated MLPs of a stock transformers model by structure, not by name, and replaces them."""

from torch import nn
from transformers.activations import SiLUActivation

from mote_export.model.configuration import MoeSettings
from mote_export.model.layer import MoteLayer

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def find_gated_mlps(model: nn.Module) -> list[str]:
    """Names of the modules that hold bias-free gate_proj, up_proj and down_proj linears with SiLU, in order of the layers."""
    return [name for name, module in model.named_modules() if _is_gated_mlp(module)]


def _is_gated_mlp(module: nn.Module) -> bool:
    linears = [getattr(module, name, None) for name in PROJECTIONS]
    if not all(isinstance(linear, nn.Linear) and linear.bias is None for linear in linears):
        return False
    return isinstance(getattr(module, "act_fn", None), nn.SiLU | SiLUActivation)


def replace_mlps(decoder: nn.Module, settings: MoeSettings) -> list[MoteLayer]:
    """Replaces, in place, the gated MLPs of the layers that `settings.layers` names; experts start as random weights.

    Raises:
        ValueError: a named layer has no gated MLP.
    """
    names = find_gated_mlps(decoder)
    if settings.layers[-1] >= len(names):
        raise ValueError(
            f"layer {settings.layers[-1]} is to become a MoTE layer, but {type(decoder).__name__} has "
            f"{len(names)} bias-free SiLU-gated MLPs (gate_proj, up_proj, down_proj)"
        )
    layers = []
    for index in settings.layers:
        layer = MoteLayer(decoder.get_submodule(names[index]), settings)
        decoder.set_submodule(names[index], layer)
        layers.append(layer)
    return layers
