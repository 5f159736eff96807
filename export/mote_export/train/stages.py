"""Which parameters train in which stage of MoTE's recipe (arXiv 2506.14435, section 3; MoE-LLaVA, arXiv 2401.15947).

| stage | trains | frozen |
|---|---|---|
| I, "connector" | the projector between vision tower and decoder | everything else |
| II, "instruction" | projector and decoder of the dense model | vision tower |
| III, "mote" | routed experts and routers of the MoTE layers | everything else, shared experts too unless they are ternary |

The papers differ in what they do to the vision tower in stage II; `train_vision_tower=True` unfreezes it there.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from mote_export.model import MoteLayer
from mote_export.model.layer import TernaryMLP

Stage = Literal["connector", "instruction", "mote"]


def set_trainable(model: nn.Module, stage: Stage, *, train_vision_tower: bool = False) -> list[str]:
    """Freeze and unfreeze the parameters of a LLaVA-style model for one stage.

    Args:
        model: a `LlavaForConditionalGeneration`, or a causal language model, which has no connector; for stage "mote" one whose
            decoder has `MoteLayer`s.
        stage: "connector", "instruction" or "mote".
        train_vision_tower: in stage "instruction", train the vision tower too.

    Returns:
        The names of the parameters that will train, in the model's order.

    Raises:
        ValueError: an unknown stage, a stage for which the model has nothing to train, or `train_vision_tower`
            outside of stage "instruction".
    """
    if stage not in get_args(Stage):
        raise ValueError(f"stage is {stage!r}, expected one of {', '.join(get_args(Stage))}")
    if train_vision_tower and stage != "instruction":
        raise ValueError(f"train_vision_tower is set in stage {stage!r}, it is for 'instruction' only")
    chosen = _routed_parameters(model) if stage == "mote" else _dense_parameters(model, stage, train_vision_tower)
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no parameter that trains in stage {stage!r}")
    trainable = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in chosen)
        if parameter.requires_grad:
            trainable.append(name)
    return trainable


def _routed_parameters(model: nn.Module) -> set[int]:
    layers = [module for module in model.modules() if isinstance(module, MoteLayer)]
    parts: list[nn.Module] = [part for layer in layers for part in (layer.experts, layer.router)]
    # A ternary shared expert (an ablation) has to learn to be one.
    parts += [layer.shared_expert for layer in layers if isinstance(layer.shared_expert, TernaryMLP)]
    return {id(parameter) for part in parts for parameter in part.parameters()}


def _dense_parameters(model: nn.Module, stage: Stage, train_vision_tower: bool) -> set[int]:
    chosen = set()
    for name, parameter in model.named_parameters():
        is_connector = "multi_modal_projector." in name
        is_vision = "vision_tower." in name
        if is_connector or (stage == "instruction" and (train_vision_tower or not is_vision)):
            chosen.add(id(parameter))
    return chosen
