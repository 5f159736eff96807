"""Sparse up-cycling: a dense model becomes a mixture of ternary experts that starts from its pretrained FFNs."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import LlavaForConditionalGeneration, PreTrainedModel

from mote_export.model.configuration import ExpertFormat, MoeSettings, MoteConfig, MoteTextConfig, SharedFormat
from mote_export.model.modeling import MoteForCausalLM, MoteForConditionalGeneration, MoteModel
from mote_export.model.surgery import gated_mlps_by_layer

ExpertInit = Literal["ffn", "random"]


def upcycle(
    model: PreTrainedModel,
    num_experts: int = 4,
    top_k: int = 1,
    layers: Sequence[int] | str = "all",
    normalize_topk: bool = False,
    router_aux_loss_coef: float = 0.01,
    experts: ExpertFormat = "ternary",
    shared_expert: SharedFormat = "full",
    init: ExpertInit = "ffn",
) -> MoteModel:
    """A MoTE model from a dense one: the FFN stays as shared expert, every routed expert starts as a copy of it.

    Args:
        model: a LLaVA model or a causal language model with a gated-MLP decoder (Qwen2, Llama, ...). Its tensors are copied;
            it is not changed.
        num_experts: routed experts of a layer, 1 to 256.
        top_k: experts computed for a token, 1 to `num_experts`.
        layers: "all" or the indices of the decoder layers to convert, ascending.
        normalize_topk: divide the selected experts' probabilities by their sum.
        router_aux_loss_coef: weight of the load-balancing loss in training.
        experts: "ternary", or "full" for MoE-LLaVA's experts.
        shared_expert: "full", "ternary", or "none" for MoE-LLaVA's layer.
        init: what experts start as: "ffn", a copy of the pretrained FFN, or "random" weights (an ablation).

    Returns:
        A model in the dtype of `model`, in training mode, on the CPU; routers are random, so seed torch for the same ones.

    Raises:
        ValueError: a setting is out of its range, or a layer has no gated MLP.
        KeyError: `model` lacks a tensor that its configuration asks for.
    """
    is_multimodal = isinstance(model, LlavaForConditionalGeneration)
    text_config = model.config.text_config if is_multimodal else model.config
    indices = range(text_config.num_hidden_layers) if layers == "all" else layers
    settings = MoeSettings(
        num_experts, top_k, normalize_topk, tuple(int(i) for i in indices), router_aux_loss_coef, experts, shared_expert
    )
    kind: type[MoteForConditionalGeneration] | type[MoteForCausalLM]
    if is_multimodal:
        kind = MoteForConditionalGeneration
        values: dict[str, Any] = model.config.to_dict()
        values.pop("model_type")
    else:
        kind = MoteForCausalLM
        values = {"text_config": model.config.to_dict()}
    values |= {"architectures": [kind.__name__], "moe": settings.to_dict()}
    mote = kind((MoteConfig if is_multimodal else MoteTextConfig)(**values))
    copy_dense_weights(model, mote, init)
    return mote.to(dtype=model.dtype)


def copy_dense_weights(dense: PreTrainedModel, mote: MoteModel, init: ExpertInit = "ffn") -> None:
    """Copies every dense tensor to its place in `mote`, MLPs to the shared experts and, as `init` says, to routed experts.

    Raises:
        KeyError, ValueError: `dense` lacks a tensor, or has it in another shape.
    """
    state = dense.state_dict()
    with torch.no_grad():
        for name, tensor in mote.state_dict().items():
            if ".mlp.router." in name or ".mlp.experts." in name:
                continue
            source = state[dense_name(name, mote)]
            if source.shape != tensor.shape:
                raise ValueError(f"{name} has shape {list(source.shape)}, the new model wants {list(tensor.shape)}")
            tensor.copy_(source)
        if init == "ffn":
            mlps = gated_mlps_by_layer(dense.get_decoder())
            assert mote.config.moe_settings is not None
            for index, layer in zip(mote.config.moe_settings.layers, mote.mote_layers(), strict=True):
                layer.experts.copy_from(mlps[index])
    if dense.generation_config is not None:
        mote.generation_config = copy.deepcopy(dense.generation_config)


def dense_name(name: str, mote: MoteModel) -> str:
    """The name, in the dense model, of a tensor of `mote` that is neither a router's nor a routed expert's."""
    name = name.replace(".mlp.shared_expert.", ".mlp.")
    return name.replace("model.language_model.", "model.", 1) if isinstance(mote, MoteForCausalLM) else name
