"""Sparse up-cycling: a dense model becomes a mixture of ternary experts that starts from its pretrained FFNs."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PretrainedConfig, PreTrainedModel

from mote_export.model.configuration import ExpertFormat, MoeSettings, MoteConfig, MoteTextConfig, SharedFormat
from mote_export.model.layer import ROUTER_INIT_STD, MoteLayer
from mote_export.model.modeling import MoteForCausalLM, MoteForConditionalGeneration, MoteModel
from mote_export.model.surgery import PROJECTIONS, gated_mlps_by_layer, module_name

ExpertInit = Literal["ffn", "random"]
# Of configurations whose causal language model changes the logits behind the output layer, which a MoTE model does not.
LOGIT_CHANGES = ("final_logit_softcapping", "lm_head_multiplier", "logit_scale", "logits_scaling", "logits_soft_cap")


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
    seed: int | None = None,
) -> MoteModel:
    """A MoTE model from a dense one: the FFN stays as shared expert, every routed expert starts as a copy of it.

    Args:
        model: a LLaVA model or a causal language model with a gated-MLP decoder (Qwen2, Llama, ...). Its tensors are copied;
            it is not changed.
        num_experts: routed experts of a layer, 1 to 256.
        top_k: experts computed for a token, 1 to `num_experts`.
        layers: "all", "every-other" (0, 2, 4, ..., as MoE-LLaVA) or the indices of the decoder layers to convert, ascending.
        normalize_topk: divide the selected experts' probabilities by their sum.
        router_aux_loss_coef: weight of the load-balancing loss in training.
        experts: "ternary", or "full" for MoE-LLaVA's experts.
        shared_expert: "full", "ternary", or "none" for MoE-LLaVA's layer.
        init: what experts start as: "ffn", a copy of the pretrained FFN, or "random" weights (an ablation).
        seed: decides the routers, and experts that start at random, whatever the layers; None: torch's own generator does.

    Returns:
        A model in the dtype of `model`, in training mode, on the CPU.

    Raises:
        ValueError: a setting is out of its range, a layer has no gated MLP, or the model is one that has no place in MoTE's.
    """
    settings = MoeSettings(
        num_experts,
        top_k,
        normalize_topk,
        expert_layers(model, layers),
        router_aux_loss_coef,
        experts,
        shared_expert,
    )
    config = mote_config(model, settings)
    mote = mote_class(config)(config)
    copy_dense_weights(model, mote, init, seed)
    return mote.to(dtype=model.dtype)


def expert_layers(dense: PreTrainedModel, layers: Sequence[int] | str) -> tuple[int, ...]:
    """The decoder layers that get experts, for `layers` of `upcycle`.

    Raises:
        ValueError: the model has no gated MLP at all, or `layers` is a word that is not known.
    """
    found = sorted(gated_mlps_by_layer(dense.get_decoder()))
    if not found:
        raise ValueError(
            f"{type(dense).__name__} has no bias-free SiLU-gated MLP ({', '.join(PROJECTIONS)}) that could become experts"
            f"{_near_misses(dense)}"
        )
    if not isinstance(layers, str):
        return tuple(int(index) for index in layers)
    if layers not in ("all", "every-other"):
        raise ValueError(f"layers is {layers!r}, expected all, every-other or indices")
    return tuple(found if layers == "all" else [index for index in found if index % 2 == 0])


def _near_misses(dense: nn.Module) -> str:
    """What keeps the first MLP with these projections from being one."""
    for name, module in dense.named_modules():
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in PROJECTIONS):
            if any(getattr(module, part).bias is not None for part in PROJECTIONS):
                return f": {name} has biases"
            activation = getattr(module, "act_fn", None)
            return f": the activation of {name} is {type(activation).__name__}"
    return ""


def mote_config(dense: PreTrainedModel, settings: MoeSettings) -> MoteConfig | MoteTextConfig:
    """The configuration of the MoTE model of a dense one: of a LLaVA model `MoteConfig`, of a text model `MoteTextConfig`.

    Raises:
        ValueError: the settings do not fit the model, or its logits are not what its output layer computes.
    """
    values: dict[str, Any] = dense.config.to_dict()
    values.pop("_name_or_path", None)  # where it lay is nobody's business
    if isinstance(dense, LlavaForConditionalGeneration):
        values.pop("model_type")
        architecture = MoteForConditionalGeneration.__name__
        return MoteConfig(**(values | {"architectures": [architecture], "moe": settings.to_dict()}))
    for name in LOGIT_CHANGES:
        if values.get(name) not in (None, 1, 1.0):
            raise ValueError(
                f"{type(dense).__name__} changes its logits by config.{name} = {values[name]}, which no MoTE model does"
            )
    return MoteTextConfig(text_config=values, moe=settings.to_dict(), architectures=[MoteForCausalLM.__name__])


def mote_class(config: PretrainedConfig) -> type[MoteForConditionalGeneration] | type[MoteForCausalLM]:
    return MoteForConditionalGeneration if isinstance(config, MoteConfig) else MoteForCausalLM


@dataclass(frozen=True)
class Origin:
    """Where a tensor of an up-cycled model comes from.

    Attributes:
        source: its name in the dense model; None: nowhere, it starts as normal random numbers.
        copies: how often it is stacked in a new first dimension; None: it stays as it is.
        std: of random numbers.
        replaced: of a tensor in a MoTE layer, what the names of the FFN that the layer replaces begin with in the dense model.
    """

    source: str | None
    copies: int | None = None
    std: float = 0.0
    replaced: str | None = None


def origins(dense: PreTrainedModel, mote: MoteModel, init: ExpertInit = "ffn") -> dict[str, Origin]:
    """The origin of every tensor in the state dict of `mote`; both models may be on torch's meta device.

    Raises:
        ValueError: a tensor has no origin in `dense`, or one of another shape, or one of `dense` has no place in `mote`.
    """
    layers = [f"{name}." for name, module in mote.named_modules() if isinstance(module, MoteLayer)]
    prefixes = _prefixes(dense, mote)
    found = {name: tensor.shape for name, tensor in dense.state_dict().items()}
    result: dict[str, Origin] = {}
    for name, tensor in mote.state_dict().items():
        layer = next((prefix for prefix in layers if name.startswith(prefix)), "")
        origin = _origin(name.removeprefix(layer), tensor.shape, bool(layer), init)
        if origin.source is not None:
            source = _renamed(layer + origin.source, prefixes)
            shape = tensor.shape if origin.copies is None else tensor.shape[1:]
            if found.get(source) != shape:
                raise ValueError(
                    f"{name} of shape {list(tensor.shape)} should come from {source} of {type(dense).__name__}, "
                    f"which has {list(found[source]) if source in found else 'no such tensor'}"
                )
            origin = replace(origin, source=source)
        result[name] = replace(origin, replaced=_renamed(layer, prefixes)) if layer else origin
    placed = {origin.source for origin in result.values()}
    replaced = tuple({origin.replaced for origin in result.values() if origin.replaced})
    homeless = [name for name in found if name not in placed and not name.startswith(replaced)]
    if homeless:
        raise ValueError(f"{homeless[0]} of {type(dense).__name__} has no place in a MoTE model ({len(homeless)} such)")
    return result


def _origin(part: str, shape: torch.Size, is_in_layer: bool, init: ExpertInit) -> Origin:
    """Of the tensor `part` of a MoTE layer, or of another module of the model; with names as in the MoTE model."""
    if not is_in_layer:
        return Origin(part)
    if part.startswith("shared_expert."):
        return Origin(part.removeprefix("shared_expert."))
    if part.startswith("experts.") and init == "ffn":
        return Origin(f"{part.removeprefix('experts.')}.weight", copies=shape[0])
    return Origin(None, std=ROUTER_INIT_STD if part == "router.weight" else shape[-1] ** -0.5)


def _prefixes(dense: PreTrainedModel, mote: MoteModel) -> list[tuple[str, str]]:
    """What the names of modules begin with, in `mote` and in `dense`, where they differ."""
    pairs = [(mote.get_decoder(), dense.get_decoder()), (mote.get_output_embeddings(), dense.get_output_embeddings())]
    return [(f"{module_name(mote, new)}.", f"{module_name(dense, old)}.") for new, old in pairs if old is not None]


def _renamed(name: str, prefixes: list[tuple[str, str]]) -> str:
    for new, old in prefixes:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def copy_dense_weights(
    dense: PreTrainedModel, mote: MoteModel, init: ExpertInit = "ffn", seed: int | None = None
) -> None:
    """Copies every dense tensor to its place in `mote`, MLPs to the shared experts and, as `init` says, to routed experts.

    Routers, and experts that start at random, stay as they are without a seed.

    Raises:
        ValueError: `dense` lacks a tensor, has it in another shape, or has one that `mote` has not.
    """
    state, target = dense.state_dict(), mote.state_dict()
    with torch.no_grad():
        for name, origin in origins(dense, mote, init).items():
            if origin.source is not None:
                target[name].copy_(state[origin.source])  # experts: to each of them
            elif seed is not None:
                for index, values in enumerate(random_parts(name, origin, target[name].shape, seed)):
                    target[name][index].copy_(values)
    if dense.generation_config is not None:
        mote.generation_config = copy.deepcopy(dense.generation_config)


def random_parts(name: str, origin: Origin, shape: Sequence[int], seed: int) -> Iterator[Tensor]:
    """The float32 numbers with which a tensor without a source starts, one entry of its first dimension after the other.

    Each has a generator of its own, so that a tensor has the same numbers whatever else a model has.
    """
    for index in range(shape[0]):
        digest = hashlib.sha256(f"{seed} {name} {index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield torch.empty(tuple(shape[1:])).normal_(std=origin.std, generator=generator)
