"""Sparse up-cycling: a dense model becomes a mixture of ternary experts that starts from its pretrained FFNs."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, PreTrainedModel

from mote_export.model.configuration import MoeSettings, MoteConfig
from mote_export.model.modeling import MoteForConditionalGeneration


def upcycle(
    model: LlavaForConditionalGeneration,
    num_experts: int = 4,
    top_k: int = 1,
    layers: Sequence[int] | str = "all",
    normalize_topk: bool = False,
    router_aux_loss_coef: float = 0.01,
) -> MoteForConditionalGeneration:
    """A MoTE model from a dense LLaVA-style one: the FFN stays as shared expert, every routed expert starts as a copy of it.

    Args:
        model: dense model with a gated-MLP decoder (Qwen2, Llama, ...). Its tensors are copied; it is not changed.
        num_experts: routed ternary experts of a layer, 1 to 256.
        top_k: experts computed for a token, 1 to `num_experts`.
        layers: "all" or the indices of the decoder layers to convert, ascending.
        normalize_topk: divide the selected experts' probabilities by their sum.
        router_aux_loss_coef: weight of the load-balancing loss in training.

    Returns:
        A model in the dtype of `model`, in training mode, on the CPU; routers are random, so seed torch for the same ones.

    Raises:
        ValueError: a setting is out of its range, or a layer has no gated MLP.
        KeyError: `model` lacks a tensor that its configuration asks for.
    """
    indices = range(model.config.text_config.num_hidden_layers) if layers == "all" else layers
    settings = MoeSettings(num_experts, top_k, normalize_topk, tuple(int(i) for i in indices), router_aux_loss_coef)
    values: dict[str, Any] = model.config.to_dict()
    values.pop("model_type")
    values["architectures"] = [MoteForConditionalGeneration.__name__]
    mote = MoteForConditionalGeneration(MoteConfig(**{**values, "moe": settings.to_dict()}))
    copy_dense_weights(model, mote)
    return mote.to(dtype=model.dtype)


def copy_dense_weights(dense: PreTrainedModel, mote: MoteForConditionalGeneration) -> None:
    """Copies every dense tensor to its place in `mote`, MLPs to the shared experts and to each routed expert.

    Raises:
        KeyError, ValueError: `dense` lacks a tensor, or has it in another shape.
    """
    state = dense.state_dict()
    with torch.no_grad():
        for name, tensor in mote.state_dict().items():
            if ".mlp.router." in name or ".mlp.experts." in name:
                continue
            source = state[name.replace(".shared_expert.", ".")]
            if source.shape != tensor.shape:
                raise ValueError(f"{name} has shape {list(source.shape)}, the new model wants {list(tensor.shape)}")
            tensor.copy_(source)
        for layer in mote.mote_layers():
            layer.experts.copy_from(layer.shared_expert)
    if dense.generation_config is not None:
        mote.generation_config = copy.deepcopy(dense.generation_config)
