"""What every checkpoint format yields, and the checks that all of them share. Files are hostile until checked."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import init_empty_weights

from mote_export.model import MoteConfig, MoteForCausalLM, MoteForConditionalGeneration, MoteModel, MoteTextConfig
from mote_export.weights import TensorInMemory, TensorSource, attach_sources
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
# The kinds of MoTE models: by model_type, the configuration, the model and the parts that have sizes.
KINDS: Mapping[str, tuple[type[MoteConfig] | type[MoteTextConfig], type[PreTrainedModel], tuple[str, ...]]] = {
    MoteConfig.model_type: (MoteConfig, MoteForConditionalGeneration, ("text_config", "vision_config")),
    MoteTextConfig.model_type: (MoteTextConfig, MoteForCausalLM, ("text_config",)),
}
LM_HEAD = "lm_head.weight"
REFUSED_KEYS = ("quantization_config", "auto_map")
# Names of attention kernels, which transformers would fetch from a hub and run. mote chooses its own.
IGNORED_PREFIXES = ("attn_implementation", "_attn_implementation")
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
MAX_LAYERS = 1024  # building a model costs time per layer even on the meta device


class CheckpointError(MoteError):
    """A checkpoint that cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with the text files that belong to it.

    Attributes:
        name: for people: of the file without its ending, or of the folder.
        model: of either kind; read from a file it is float32, in eval mode, on the CPU.
        files: name to content of tokenizer.json, tokenizer_config.json and, where there are such, preprocessor_config.json,
            chat_template.jinja and generation_config.json.
    """

    name: str
    model: MoteModel
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_vision(self) -> bool:
        """Whether it takes pictures: `MoteForConditionalGeneration`, not `MoteForCausalLM`."""
        return isinstance(self.model, MoteForConditionalGeneration)


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint after all checks that need no weights; what they hold is read when it is asked for.

    Attributes:
        name: as in `Checkpoint`.
        path: of the file or folder.
        config: of the model.
        tensors: by the names of the model's state dict; of tied tensors the first is there only.
        files: as in `Checkpoint`.
    """

    name: str
    path: Path
    config: MoteConfig | MoteTextConfig
    tensors: Mapping[str, TensorSource]
    files: Mapping[str, str] = field(default_factory=dict)

    def skeleton(self) -> Checkpoint:
        """The model in eval mode without its weights: parameters on torch's meta device, each with its source."""
        kind = KINDS[self.config.model_type][1]
        with init_empty_weights():
            model = kind(self.config)
        model.tie_weights()
        attach_sources(model, self.tensors)
        buffers = dict(model.named_buffers())
        for name in self.tensors.keys() & buffers.keys():
            buffers[name].copy_(self.tensors[name].read())
        return Checkpoint(self.name, model.eval(), self.files)

    def load(self) -> Checkpoint:
        """The whole model, in float32 and eval mode, on the CPU.

        Raises:
            CheckpointError: a tensor cannot be read, or holds NaN or infinity.
        """
        state = {}
        for name, source in self.tensors.items():
            state[name] = source.read()
            check_values(self.path, name, state[name])
        kind = KINDS[self.config.model_type][1]
        model: MoteModel = kind.from_pretrained(
            None, config=self.config, state_dict=state, dtype=torch.float32, attn_implementation="sdpa"
        )
        return Checkpoint(self.name, model.eval(), self.files)


@dataclass(frozen=True)
class CheckpointFormat:
    """One format: how to recognise it and how to open it."""

    description: str
    matches: Callable[[Path], bool]
    open: Callable[[Path], OpenCheckpoint]


def open_checkpoint(
    path: Path, name: str, config: Mapping[str, Any], tensors: Mapping[str, TensorSource], files: Mapping[str, str]
) -> OpenCheckpoint:
    """A checkpoint of the kind that an untrusted configuration names, with untrusted tensors.

    Nothing is allocated before every name and shape has been compared with the configuration's model.

    Raises:
        CheckpointError: see the message.
    """
    parsed = parse_config(path, config)
    parsed._attn_implementation = "sdpa"  # what the runtimes are compared with
    _check_state(path, parsed, KINDS[parsed.model_type][1], tensors)
    return OpenCheckpoint(name, path, parsed, tensors, files)


def in_memory(tensors: Mapping[str, Tensor]) -> dict[str, TensorSource]:
    """Tensors that are there, or mapped, as sources."""
    return {name: TensorInMemory(tensor) for name, tensor in tensors.items()}


def parse_config(source: Path, config: Mapping[str, Any]) -> MoteConfig | MoteTextConfig:
    """The configuration of a MoTE model from the dictionary of its file. Raises CheckpointError."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in KINDS:
        raise CheckpointError(
            f"{source} holds a model of type {model_type!r}, expected {' or '.join(map(repr, KINDS))}: make it one with "
            f"mote-upcycle."
        )
    if config.get("moe") is None and (config.get("bitnet") is None or model_type != MoteTextConfig.model_type):
        raise CheckpointError(f"{source} has no MoTE layer (its config has no 'moe'): up-cycle the model first.")
    refuse_keys(source, config)
    config_class, _, sections = KINDS[model_type]
    try:
        for section in sections:
            _check_sizes(section, config[section], SIZES[section])
        parsed = config_class(**{key: value for key, value in without_ignored(config).items() if key != "model_type"})
        for section in sections:  # what the file leaves to the class
            _check_sizes(section, getattr(parsed, section).to_dict(), SIZES[section], must_have=True)
        if isinstance(parsed, MoteConfig):
            _check_feature_layer(parsed)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{source} has a configuration that cannot be used: {error}.") from error
    return parsed


def refuse_keys(source: Path, config: Mapping[str, Any], where: str = "config") -> None:
    """Raises CheckpointError for a quantized model and for one that brings code of its own; parts of a model count as well."""
    for key, value in config.items():
        if key in REFUSED_KEYS and value is not None:
            raise CheckpointError(
                f"{source} has {where}.{key}, which mote does not follow: use the original, unquantized checkpoint of a model "
                f"that transformers knows."
            )
        if isinstance(value, dict):
            refuse_keys(source, value, f"{where}.{key}")


def without_ignored(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without the ignored keys, at any depth."""
    return {
        key: without_ignored(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not str(key).startswith(IGNORED_PREFIXES)
    }


def _check_feature_layer(config: MoteConfig) -> None:
    """hidden_states of a tower of n layers has n + 1 entries."""
    entries = config.vision_config.num_hidden_layers + 1
    layer = config.vision_feature_layer
    if type(layer) is not int or not -entries <= layer < entries:
        raise ValueError(f"vision_feature_layer is {layer!r}, expected an integer from {-entries} to {entries - 1}")


def _check_sizes(section: str, values: Any, names: tuple[str, ...], *, must_have: bool = False) -> None:
    """Once before a configuration class sees them, as some build a list entry per layer: a file may leave out a class's own."""
    if not isinstance(values, dict):
        raise ValueError(f"{section} is {values!r}, expected a dictionary")
    for name in names:
        if name not in values and not must_have:
            continue
        if type(values.get(name)) is not int or values[name] < 1:
            raise ValueError(f"{section}.{name} is {values.get(name)!r}, expected a positive integer")
    if values.get("num_hidden_layers", 1) > MAX_LAYERS:
        raise ValueError(f"{section}.num_hidden_layers is {values['num_hidden_layers']}, expected 1 to {MAX_LAYERS}")


def _check_state(
    source: Path, config: PretrainedConfig, kind: type[PreTrainedModel], state: Mapping[str, TensorSource]
) -> None:
    skeleton = build_skeleton(source, config, kind)
    expected = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    # As transformers decides it; the flag of the outer configuration has no effect.
    is_tied = config.get_text_config(decoder=True).tie_word_embeddings
    if is_tied and LM_HEAD in state:
        raise CheckpointError(
            f"{source} has {LM_HEAD}, but its configuration ties it to the embedding: which one is meant?"
        )
    check_names(source, state.keys(), expected.keys() - ({LM_HEAD} if is_tied else set()))
    for name, tensor in state.items():
        check_kind(source, name, tensor.shape, expected[name], tensor.dtype)


def drop_tied_head(path: Path, tensors: Mapping[str, TensorSource], embedding: str) -> dict[str, TensorSource]:
    """Without the output layer, which the configuration ties to the embedding. Raises CheckpointError where it differs."""
    head = tensors.get(LM_HEAD)
    if head is not None and embedding in tensors:
        other = tensors[embedding]
        if (head.shape, head.dtype) != (other.shape, other.dtype) or not torch.equal(head.read(), other.read()):
            raise CheckpointError(
                f"{path} has {LM_HEAD} with other values than the embedding, but its configuration ties them: which one is meant?"
            )
    return {name: tensor for name, tensor in tensors.items() if name != LM_HEAD}


def build_skeleton(source: Path, config: PretrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """The model of a configuration on torch's meta device: names and shapes, no memory. Raises CheckpointError."""
    try:
        with torch.device("meta"):
            return kind(config)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(f"{source} has a configuration that no model can be built from: {error}.") from error


def check_names(source: Path, found: Set[str], expected: Set[str]) -> None:
    """Raises CheckpointError unless the tensors are those of the configuration's model, no more and no less."""
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        verb, names = ("lacks", missing) if missing else ("has an unexpected", unexpected)
        raise CheckpointError(
            f"{source} {verb} tensor {names[0]} ({len(names)} such): it does not fit its own configuration."
        )


def check_kind(
    source: Path, name: str, shape: Sequence[int], expected: Sequence[int], dtype: torch.dtype | str
) -> None:
    """Raises CheckpointError for a tensor of another shape or of no float type that mote reads."""
    if tuple(shape) != tuple(expected):
        raise CheckpointError(f"{source}: {name} has shape {list(shape)}, the configuration wants {list(expected)}.")
    if dtype not in FLOAT_DTYPES:
        raise CheckpointError(f"{source}: {name} is {dtype}, expected a dense float32, float16 or bfloat16.")


def check_layout(source: Path, name: str, tensor: Tensor) -> None:
    """Raises CheckpointError unless the tensor is an ordinary one, whose values lie in memory or in a mapped file."""
    if tensor.layout != torch.strided or tensor.is_meta:
        found = "on the meta device" if tensor.is_meta else str(tensor.layout)
        raise CheckpointError(f"{source}: {name} is {found}, expected a dense float32, float16 or bfloat16.")


def check_values(source: Path, name: str, tensor: Tensor) -> None:
    """Raises CheckpointError unless the tensor is finite."""
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
        raise CheckpointError(
            f"{source} lacks {missing[0]}: save the tokenizer with the model, with save_pretrained of its AutoTokenizer."
        )
    return dict(files)
