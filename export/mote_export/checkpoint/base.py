"""What every checkpoint format yields, and the checks that all of them share. Files are hostile until checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mote_export.model import MoteConfig, MoteForConditionalGeneration
from mote_runtime.errors import MoteError

# Text files that belong to a model; anything else in a checkpoint is refused rather than written to disk later.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
PROCESSOR_FILES = ("preprocessor_config.json", "chat_template.jinja", "generation_config.json")
COMPANION_FILES = TOKENIZER_FILES + PROCESSOR_FILES
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
COMMON_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
SIZES = {
    "text_config": (*COMMON_SIZES, "vocab_size", "max_position_embeddings"),
    "vision_config": (*COMMON_SIZES, "image_size", "patch_size", "num_channels"),
}
LM_HEAD = "lm_head.weight"
REFUSED_KEYS = ("quantization_config", "auto_map")
# Names of attention kernels, which transformers would fetch from a hub and run. mote chooses its own.
IGNORED_PREFIXES = ("attn_implementation", "_attn_implementation")
MAX_LAYERS = 1024  # building a model costs time per layer even on the meta device


class CheckpointError(MoteError):
    """A checkpoint that cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with the text files that belong to it.

    Attributes:
        name: for people: of the file without its ending, or of the folder.
        model: read from a file it is float32, in eval mode, on the CPU.
        files: name to content of tokenizer.json, tokenizer_config.json and, where there are such, preprocessor_config.json,
            chat_template.jinja and generation_config.json.
    """

    name: str
    model: MoteForConditionalGeneration
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointFormat:
    """One format: how to recognise it and how to read it."""

    description: str
    matches: Callable[[Path], bool]
    load: Callable[[Path], Checkpoint]


def build_model(source: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> MoteForConditionalGeneration:
    """A float32 model in eval mode from an untrusted configuration and state dict.

    Nothing is allocated before every name and shape of the state dict has been compared with the configuration's model.

    Raises:
        CheckpointError: see the message.
    """
    parsed = _parse_config(source, config)
    _check_state(source, parsed, state)
    model = MoteForConditionalGeneration.from_pretrained(
        None, config=parsed, state_dict=dict(state), dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.eval()


def _parse_config(source: Path, config: Mapping[str, Any]) -> MoteConfig:
    if config.get("model_type") != MoteConfig.model_type:
        raise CheckpointError(
            f"{source} holds a model of type {config.get('model_type')!r}, expected 'mote': see mote_export.model.upcycle."
        )
    if config.get("moe") is None:
        raise CheckpointError(f"{source} has no MoTE layer (its config has no 'moe'): up-cycle the model first.")
    for key in REFUSED_KEYS:
        if key in config:
            raise CheckpointError(
                f"{source} has config.{key}, which mote does not follow: export the original checkpoint."
            )
    try:
        for section, names in SIZES.items():
            _check_sizes(section, config[section], names)
        parsed = MoteConfig(**{key: value for key, value in _without_ignored(config).items() if key != "model_type"})
        _check_feature_layer(parsed)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{source} has a configuration that cannot be used: {error}.") from error
    return parsed


def _without_ignored(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without the ignored keys, at any depth."""
    return {
        key: _without_ignored(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not str(key).startswith(IGNORED_PREFIXES)
    }


def _check_feature_layer(config: MoteConfig) -> None:
    """hidden_states of a tower of n layers has n + 1 entries."""
    entries = config.vision_config.num_hidden_layers + 1
    layer = config.vision_feature_layer
    if type(layer) is not int or not -entries <= layer < entries:
        raise ValueError(f"vision_feature_layer is {layer!r}, expected an integer from {-entries} to {entries - 1}")


def _check_sizes(section: str, values: Any, names: tuple[str, ...]) -> None:
    """Before a configuration class sees them: some build a list entry per layer."""
    if not isinstance(values, dict):
        raise ValueError(f"{section} is {values!r}, expected a dictionary")
    for name in names:
        if type(values.get(name)) is not int or values[name] < 1:
            raise ValueError(f"{section}.{name} is {values.get(name)!r}, expected a positive integer")
    if values["num_hidden_layers"] > MAX_LAYERS:
        raise ValueError(f"{section}.num_hidden_layers is {values['num_hidden_layers']}, expected 1 to {MAX_LAYERS}")


def _check_state(source: Path, config: MoteConfig, state: Mapping[str, Tensor]) -> None:
    try:
        with torch.device("meta"):
            skeleton = MoteForConditionalGeneration(config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source} has a configuration that no model can be built from: {error}.") from error
    expected = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    # As transformers decides it; the flag of the outer configuration has no effect.
    is_tied = config.get_text_config(decoder=True).tie_word_embeddings
    if is_tied and LM_HEAD in state:
        raise CheckpointError(
            f"{source} has {LM_HEAD}, but its configuration ties it to the embedding: which one is meant?"
        )
    missing = sorted(expected.keys() - state.keys() - ({LM_HEAD} if is_tied else set()))
    unexpected = sorted(state.keys() - expected.keys())
    if missing or unexpected:
        kind, names = ("lacks", missing) if missing else ("has an unexpected", unexpected)
        raise CheckpointError(
            f"{source} {kind} tensor {names[0]} ({len(names)} such): it does not fit its own configuration."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name]:
            raise CheckpointError(
                f"{source}: {name} has shape {list(tensor.shape)}, the configuration wants {list(expected[name])}."
            )
        if tensor.layout != torch.strided or tensor.dtype not in FLOAT_DTYPES:
            raise CheckpointError(f"{source}: {name} is {tensor.dtype}, expected a dense float32, float16 or bfloat16.")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{source}: {name} contains NaN or infinity: the checkpoint is damaged or its training diverged."
            )


def check_files(source: Path, files: Mapping[Any, Any]) -> dict[str, str]:
    """The companion files, or an error when a name or content is not what a checkpoint may carry."""
    for name, content in files.items():
        if name not in COMPANION_FILES or not isinstance(content, str):
            raise CheckpointError(
                f"{source} carries a file {name!r}, expected text files named {', '.join(COMPANION_FILES)}."
            )
    missing = [name for name in TOKENIZER_FILES if name not in files]
    if missing:
        raise CheckpointError(f"{source} lacks {missing[0]}: save the tokenizer with the model.")
    return dict(files)
