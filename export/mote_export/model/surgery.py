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


def module_name(model: nn.Module, module: nn.Module) -> str:
    """The name of a module in a model that holds it; "" for the model itself."""
    return next(name for name, candidate in model.named_modules() if candidate is module)


def gated_mlps_by_layer(decoder: nn.Module) -> dict[int, nn.Module]:
    """The modules of `find_gated_mlps`, by the number of their layer.

    Raises:
        ValueError: a layer has several, as a mixture of experts does.
    """
    return {index: decoder.get_submodule(name) for index, name in _names_by_layer(decoder).items()}


def _names_by_layer(decoder: nn.Module) -> dict[int, str]:
    names: dict[int, str] = {}
    for name in find_gated_mlps(decoder):
        other = names.setdefault(_layer_index(name), name)
        if other != name:
            raise ValueError(
                f"{type(decoder).__name__} has several MLPs in a layer, {other} and {name}: experts already"
            )
    return names


def _layer_index(name: str) -> int:
    """The number in a module's path, `layers.3.mlp`; -1 where there is none."""
    numbers = [part for part in name.split(".") if part.isdecimal()]
    return int(numbers[0]) if numbers else -1


def replace_mlps(decoder: nn.Module, settings: MoeSettings) -> list[MoteLayer]:
    """Replaces, in place, the gated MLPs of the layers that `settings.layers` names; experts start as random weights.

    Raises:
        ValueError: a named layer has no gated MLP.
    """
    mlps = _names_by_layer(decoder)
    for index in settings.layers:
        if index not in mlps:
            raise ValueError(
                f"layer {index} is to become a MoTE layer, but {type(decoder).__name__} has bias-free SiLU-gated MLPs "
                f"(gate_proj, up_proj, down_proj) only in layers {sorted(mlps)}"
            )
    layers = []
    for index in settings.layers:
        layer = MoteLayer(decoder.get_submodule(mlps[index]), settings)
        decoder.set_submodule(mlps[index], layer)
        layers.append(layer)
    return layers
