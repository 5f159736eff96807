"""Dense models of transformers, text or LLaVA, from a folder with safetensors: what is up-cycled, trained and compared with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
)

from mote_export.checkpoint.base import (
    KINDS,
    LAYER_COUNTS,
    MAX_LAYERS,
    CheckpointError,
    build_skeleton,
    check_kind,
    check_names,
    check_values,
    refuse_keys,
    without_ignored,
)
from mote_export.checkpoint.folder import read_companions, read_config
from mote_export.checkpoint.tensor_files import StoredTensor, stored_tensors

# Old files hold these, one a layer; transformers computes them.
COMPUTED = r"rotary_emb\.inv_freq$"
SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
VISION_SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "image_size", "patch_size", "num_channels")


@dataclass(frozen=True)
class DenseCheckpoint:
    """A dense model with the text files that belong to it.

    Attributes:
        name: of the folder.
        model: transformers' own class, a `LlavaForConditionalGeneration` or a causal language model; float32, in eval mode, on
            the CPU.
        files: as in `Checkpoint`.
    """

    name: str
    model: PreTrainedModel
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_vision(self) -> bool:
        """Whether it takes pictures."""
        return isinstance(self.model, LlavaForConditionalGeneration)


@dataclass(frozen=True)
class DenseFolder:
    """A dense model's folder after all checks that need no weights.

    Attributes:
        path: of the folder.
        skeleton: the model on torch's meta device.
        tensors: what is stored, by the names of the skeleton's state dict; of tied tensors the first is
            there only.
    """

    path: Path
    skeleton: PreTrainedModel
    tensors: Mapping[str, StoredTensor]


def load_dense(path: Path) -> DenseCheckpoint:
    """Reads a dense transformers folder, in float32, on the CPU. No code in it is run.

    Args:
        path: a folder of `save_pretrained` of a causal language model or a LLaVA model, with safetensors and its tokenizer's
            files. Tensors may have the names of older releases of transformers.

    Raises:
        CheckpointError: one sentence that says what is wrong with the folder.
    """
    folder = open_dense(path)
    files = read_companions(path)
    state: dict[str, Tensor] = {}
    for name, stored in folder.tensors.items():
        state[name] = stored.read()
        check_values(path, name, state[name])
    kind = type(folder.skeleton)
    model: PreTrainedModel = kind.from_pretrained(
        None, config=folder.skeleton.config, state_dict=state, dtype=torch.float32, attn_implementation="sdpa"
    )
    return DenseCheckpoint(path.resolve().name, model.eval(), files)


def open_dense(path: Path) -> DenseFolder:
    """The model of a folder without its weights, and where each of them lies.

    Raises:
        CheckpointError: it is not a dense model that transformers knows, or a tensor is missing, unexpected, of another shape or
            not of a float type.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a folder: expected one of save_pretrained, with config.json and safetensors"
        )
    config, kind = _parse_config(path, read_config(path))
    skeleton = build_skeleton(path, config, kind)
    skeleton.tie_weights()
    return DenseFolder(path, skeleton, _check_tensors(path, skeleton, stored_tensors(path)))


def _parse_config(path: Path, values: Mapping[str, Any]) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{path} holds a model of type {model_type!r}, which this version of transformers does not know"
        )
    if model_type in KINDS:
        raise CheckpointError(f"{path} is a MoTE model already (model_type is {model_type!r}); expected a dense model")
    refuse_keys(path, values)
    try:
        _check_depths(values)
        config = CONFIG_MAPPING[model_type](
            **{key: value for key, value in without_ignored(values).items() if key != "model_type"}
        )
        is_llava = type(config) is LlavaConfig
        _check_sizes(config.text_config if is_llava else config, SIZES)
        if is_llava:
            _check_sizes(config.vision_config, VISION_SIZES)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{path} has a configuration that cannot be used: {error}") from error
    if is_llava:
        return config, LlavaForConditionalGeneration
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"{path} holds a model of type {model_type!r}, expected a causal language model or a LLaVA model of transformers"
        )
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return config, kind[0] if isinstance(kind, tuple) else kind


def _check_depths(values: Mapping[str, Any], where: str = "config") -> None:
    """Before a configuration class sees them: some build a list entry per layer."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            _check_depths(value, f"{where}.{key}")
        elif key in LAYER_COUNTS and (type(value) is not int or not 1 <= value <= MAX_LAYERS):
            raise ValueError(f"{where}.{key} is {value!r}, expected 1 to {MAX_LAYERS}")


def _check_sizes(config: PretrainedConfig, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name, None)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} of {config.model_type} is {value!r}, expected a positive integer")


def _check_tensors(
    path: Path, skeleton: PreTrainedModel, stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    expected = skeleton.state_dict(keep_vars=True)
    found = {
        name: tensor
        for name, tensor in _as_named_now(path, skeleton, stored).items()
        if name in expected or not _is_computed(skeleton, name)
    }
    for name, tensor in found.items():
        if name in expected:
            check_kind(path, tensor.name, tensor.shape, expected[name].shape, tensor.dtype)
    first: dict[int, str] = {}  # of the names of one parameter
    for name, parameter in expected.items():
        kept = first.setdefault(id(parameter), name)
        if kept != name and name in found:
            _check_equal(path, found.pop(name), found.get(kept))
    check_names(path, found.keys(), set(first.values()))
    return found


def _as_named_now(path: Path, skeleton: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """By the names of this release's modules, to which transformers' own loader maps those of older ones."""
    prefix = skeleton.base_model_prefix
    has_prefix = not prefix or any(name.startswith(prefix) for name in stored)
    mapping: dict[str, str] = skeleton._get_key_renaming_mapping(
        list(stored),
        skeleton._checkpoint_conversion_mapping,
        loading_task_model_from_base_state_dict=not has_prefix and hasattr(skeleton, prefix),
    )
    found: dict[str, StoredTensor] = {}
    for old, name in mapping.items():
        if name in found:
            raise CheckpointError(f"{path} holds {name} twice, as {found[name].name} and {old}")
        found[name] = stored[old]
    return found


def _is_computed(skeleton: PreTrainedModel, name: str) -> bool:
    """Old files hold some buffers that models now compute."""
    patterns = [COMPUTED, *(skeleton._keys_to_ignore_on_load_unexpected or ())]
    return any(re.search(pattern, name) for pattern in patterns) or name in dict(skeleton.named_buffers())


def _check_equal(path: Path, alias: StoredTensor, kept: StoredTensor | None) -> None:
    """A tied tensor may be stored under both of its names, but not with other values."""
    if kept is None:
        return
    if alias.dtype != kept.dtype or not all(map(torch.equal, alias.blocks(), kept.blocks())):
        raise CheckpointError(
            f"{path} has {alias.name} with other values than {kept.name}, but its configuration ties them: which one is meant?"
        )
