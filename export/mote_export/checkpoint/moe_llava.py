"""MoE-LLaVA's checkpoints (arXiv 2401.15947): LLaVA with DeepSpeed's mixtures of full-precision experts.

A folder as PKU-YuanGroup's MoE-LLaVA saves it: `config.json` with the decoder's fields beside those of `moe`, vision tower and
projector, and weights in safetensors or torch files. Experts lie one matrix a tensor; they are stacked when they are read.
"""

import inspect
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import CONFIG_MAPPING

from mote_export.checkpoint.base import (
    LM_HEAD,
    CheckpointError,
    CheckpointFormat,
    OpenCheckpoint,
    drop_tied_head,
    open_checkpoint,
    refuse_keys,
)
from mote_export.checkpoint.folder import CONFIG, read_companions, read_config
from mote_export.checkpoint.torch_files import folder_tensors
from mote_export.json_file import read_json
from mote_export.model import MoteConfig, MoteTextConfig
from mote_export.weights import StackedSource, TensorSource

logger = logging.getLogger(__name__)

# model_type of a checkpoint to that of its decoder in transformers.
DECODERS = {"moe_llava_qwen1_5": "qwen2", "moe_llava_stablelm": "stablelm"}
# Names that StableLM had before it came to transformers.
RENAMED = {"rope_pct": "partial_rotary_factor", "norm_eps": "layer_norm_eps"}
MODES = ("sparse", "dense", "first_half", "second_half", "custom")
PROJECTOR = "mlp2x_gelu"
FEATURES = {"patch": "default", "cls_patch": "full"}  # to vision_feature_select_strategy
# What mote asks with (docs/export-format.md). A tokenizer that lacks some gets them at ids that the embedding has to spare.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
IMAGE_TOKEN = "<|image_pad|>"
# The conversations that these two kinds are trained with.
CHAT_TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions. "
    "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image_pad|>{{ '\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ ' ' if message['role'] == 'user' else '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
MAX_LISTED = 1024  # of moe_layers_idx; no decoder has more layers

# The names begin so in the checkpoint; in ours, as the second says.
DECODER_PREFIX, OUR_DECODER = "model.", "model.language_model."
TOWER_PREFIX, OUR_TOWER = "model.image_tower.image_tower.", "model.vision_tower."
PROJECTOR_PREFIXES = ("model.mm_projector.image_spatial_proj.", "model.mm_projector.")  # the second: before video
OUR_PROJECTOR = {"0": "model.multi_modal_projector.linear_1", "2": "model.multi_modal_projector.linear_2"}
EXPERT = re.compile(
    r"layers\.(\d+)\.mlp\.deepspeed_moe\.experts\.deepspeed_experts\.(\d+)\.(gate|up|down)_proj\.weight"
)
ROUTER = re.compile(r"layers\.(\d+)\.mlp\.deepspeed_moe\.gate\.wg\.weight")
# Old files hold these, which transformers computes.
COMPUTED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$")


Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Tower:
    """What is published of a vision tower: fields of its configuration, and how its pictures are normalised."""

    config: Mapping[str, Any]
    mean: Channels
    std: Channels


_CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
_CLIP |= {"num_attention_heads": 16, "patch_size": 14, "num_channels": 3, "projection_dim": 768}
_SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
_SIGLIP |= {"num_attention_heads": 16, "patch_size": 14, "num_channels": 3}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
# Checkpoints only name their tower. Of these the configuration is known without it.
TOWERS = {
    "openai/clip-vit-large-patch14-336": Tower(_CLIP | {"image_size": 336}, _CLIP_MEAN, _CLIP_STD),
    "openai/clip-vit-large-patch14": Tower(_CLIP | {"image_size": 224}, _CLIP_MEAN, _CLIP_STD),
    "google/siglip-so400m-patch14-384": Tower(_SIGLIP | {"image_size": 384}, _HALF, _HALF),
}


def open_moe_llava(path: Path, vision_tower: Path | None = None) -> OpenCheckpoint:
    """Opens a folder of MoE-LLaVA, as the MoTE model that computes the same: full-precision experts without a shared one.

    Args:
        path: with config.json, weights, tokenizer.json and tokenizer_config.json.
        vision_tower: transformers' folder of the tower that the checkpoint names, for what is not in it.

    Raises:
        CheckpointError: one sentence that says what is wrong or missing.
    """
    config = read_config(path)
    refuse_keys(path, config)
    files = {"chat_template.jinja": CHAT_TEMPLATE} | _read_files(path)
    stored = folder_tensors(path)
    moe, counts = _moe_settings(path, config)
    text = _text_config(path, config)
    _check_tower_names(path, stored, config.get("mm_image_tower"))
    tensors = _decoder_tensors(path, stored, counts)
    if config.get("tie_word_embeddings"):
        tensors = drop_tied_head(path, tensors, f"{OUR_DECODER}embed_tokens.weight")
    if config.get("mm_image_tower") is None:
        text_model = {"model_type": MoteTextConfig.model_type, "text_config": text | _end_tokens(config), "moe": moe}
        return open_checkpoint(path, path.resolve().name, text_model, tensors, files)
    tower = _tower(path, config, vision_tower)
    tensors |= _tower_tensors(path, stored, config["mm_image_tower"], vision_tower)
    tensors |= _projector_tensors(path, config, stored)
    files, image_token = _add_tokens(path, files, text.get("vocab_size"))
    files["preprocessor_config.json"] = _preprocessor(tower)
    if config.get("image_aspect_ratio") == "pad":
        logger.warning("%s pads pictures to a square, which mote does not: they are stretched to it instead", path.name)
    values: dict[str, Any] = {
        "model_type": MoteConfig.model_type,
        "text_config": text,
        "vision_config": dict(tower.config),
        "moe": moe,
        "image_token_index": image_token,
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": _feature_strategy(path, config),
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    return open_checkpoint(path, path.resolve().name, values, tensors, files)


def _read_files(path: Path) -> dict[str, str]:
    try:
        return read_companions(path)
    except CheckpointError as error:
        if (path / "tokenizer.json").exists():
            raise
        raise CheckpointError(
            f"{path} lacks tokenizer.json, as MoE-LLaVA saves the slow tokenizer only: make one with "
            "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)."
        ) from error


def _moe_settings(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, int]]:
    """`MoeSettings` as a dictionary, and the number of experts of each layer that has some."""

    def fail(found: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{path} has {found}, expected {expected}.")

    moe = config.get("moe")
    if not isinstance(moe, dict) or moe.get("moe_enable") is not True:
        raise fail("no experts (its config.moe does not enable them)", "a checkpoint of MoE-LLaVA's third stage")
    if moe.get("use_residual"):
        raise fail("config.moe.use_residual set", "experts without a residual one, which is all that mote reads")
    if moe.get("moe_mode", "sparse") not in MODES:
        raise fail(f"config.moe.moe_mode {moe['moe_mode']!r}", f"one of {', '.join(MODES)}")
    layers, counts, top_k = moe.get("moe_layers_idx"), moe.get("num_experts"), moe.get("top_k_experts")
    if not _is_list_of_integers(layers):
        raise fail(f"config.moe.moe_layers_idx {layers!r:.80}", "a list of ascending layer indices")
    assert isinstance(layers, list)
    if not _is_list_of_integers(counts) or len(counts) not in (1, len(layers)):  # type: ignore[arg-type]
        raise fail(f"config.moe.num_experts {counts!r:.80}", f"a list of 1 or {len(layers)} numbers of experts")
    assert isinstance(counts, list)
    count: int = counts[0]
    if len(set(counts)) != 1:
        raise fail(f"layers of {min(counts)} and of {max(counts)} experts", "the same number in every layer")
    if type(top_k) is not int or top_k not in (1, 2):
        raise fail(f"config.moe.top_k_experts {top_k!r}", "1 or 2, for which DeepSpeed has gates")
    settings = {
        "num_experts": count,
        "top_k": top_k,
        "normalize_topk": top_k == 2,  # DeepSpeed's gate of one expert is its raw probability
        "layers": layers,
        "router_aux_loss_coef": moe.get("router_aux_loss_coef", 0.01),
        "experts": "full",
        "shared_expert": "none",
    }
    return settings, dict.fromkeys(layers, count)


def _is_list_of_integers(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_LISTED and all(type(item) is int for item in value)


def _text_config(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's own fields of the checkpoint's flat configuration, with the names that they have in transformers."""
    model_type = DECODERS[config["model_type"]]
    known = inspect.signature(CONFIG_MAPPING[model_type].__init__).parameters.keys()
    renamed = {RENAMED.get(name, name): value for name, value in config.items()}
    text = {name: value for name, value in renamed.items() if name in known - {"self", "kwargs"}}
    if model_type == "stablelm":
        text.setdefault("use_qkv_bias", True)  # as MoE-LLaVA's own class
    for name in ("max_position_embeddings", "vocab_size"):
        if name not in text:
            raise CheckpointError(f"{path} lacks config.{name}, which a decoder of type {model_type!r} needs.")
    return {**text, "model_type": model_type}


def _end_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config}


def _decoder_tensors(
    path: Path, stored: Mapping[str, TensorSource], counts: Mapping[int, int]
) -> dict[str, TensorSource]:
    """Everything but vision tower and projector, by our names; experts are stacked."""
    found: dict[str, TensorSource] = {}
    experts: dict[str, dict[int, TensorSource]] = {}
    for name, tensor in stored.items():
        part = name.removeprefix(DECODER_PREFIX)
        if name == LM_HEAD:
            found[name] = tensor
        elif part.startswith(("image_tower.", "mm_projector.", "video_tower.")) or COMPUTED.search(name):
            continue
        elif match := EXPERT.fullmatch(part):
            layer, expert, projection = int(match[1]), int(match[2]), match[3]
            stack = experts.setdefault(f"{OUR_DECODER}layers.{layer}.mlp.experts.{projection}_proj", {})
            if not expert < counts.get(layer, 0):
                raise CheckpointError(
                    f"{path} has {name}, but its config gives layer {layer} {counts.get(layer, 0)} experts."
                )
            stack[expert] = tensor
        elif match := ROUTER.fullmatch(part):
            found[f"{OUR_DECODER}layers.{int(match[1])}.mlp.router.weight"] = tensor
        else:
            found[OUR_DECODER + part if name != part else name] = tensor
    return found | {name: _stack(path, name, parts, counts) for name, parts in experts.items()}


def _stack(path: Path, name: str, parts: Mapping[int, TensorSource], counts: Mapping[int, int]) -> TensorSource:
    count = next(iter(counts.values()))
    missing = [expert for expert in range(count) if expert not in parts]
    if missing:
        raise CheckpointError(f"{path} lacks expert {missing[0]} of {name.removeprefix(OUR_DECODER)}, of {count}.")
    first = parts[0]
    for expert, tensor in parts.items():
        if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
            raise CheckpointError(
                f"{path}: expert {expert} of {name.removeprefix(OUR_DECODER)} has shape {list(tensor.shape)} and type "
                f"{tensor.dtype}, expert 0 {list(first.shape)} and {first.dtype}."
            )
    return StackedSource([parts[expert] for expert in range(count)])


def _tower(path: Path, config: Mapping[str, Any], vision_tower: Path | None) -> Tower:
    name = config["mm_image_tower"]
    if config.get("mm_video_tower") is not None:
        logger.warning("%s also has a video tower, which is left out", path.name)
    if vision_tower is not None:
        return _read_tower(vision_tower)
    if not isinstance(name, str) or name not in TOWERS:
        raise CheckpointError(
            f"{path} names the vision tower {name!r:.120}, whose configuration is not in it: give the tower's own folder of "
            f"transformers with --vision-tower (without one mote knows {', '.join(TOWERS)})."
        )
    return TOWERS[name]


def _read_tower(folder: Path) -> Tower:
    """From a folder of CLIP or SigLIP: the whole model's, or the vision tower's alone."""
    config = read_config(folder)
    refuse_keys(folder, config)
    model_type = config.get("model_type")
    if model_type in ("clip", "siglip"):
        vision = config.get("vision_config")
        if not isinstance(vision, dict):
            raise CheckpointError(f"{folder} has no vision_config: expected a folder of CLIP or SigLIP.")
        config, model_type = vision, f"{model_type}_vision_model"
    if model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise CheckpointError(f"{folder} holds a model of type {model_type!r}, expected a CLIP or SigLIP vision tower.")
    usual = (_CLIP_MEAN, _CLIP_STD) if model_type == "clip_vision_model" else (_HALF, _HALF)
    return Tower({**config, "model_type": model_type}, *_normalisation(folder, usual))


def _normalisation(folder: Path, usual: tuple[Channels, Channels]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of the tower's own image processor, if its folder has one; checked where they are used."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return usual
    values = read_json(path, "the settings of an image processor", CheckpointError)
    return values.get("image_mean", usual[0]), values.get("image_std", usual[1])


def _tower_tensors(
    path: Path, stored: Mapping[str, TensorSource], name: str, vision_tower: Path | None
) -> dict[str, TensorSource]:
    inside = {
        OUR_TOWER + key.removeprefix(TOWER_PREFIX): tensor
        for key, tensor in stored.items()
        if key.startswith(TOWER_PREFIX) and not COMPUTED.search(key)
    }
    if inside:
        return inside
    if vision_tower is None:
        raise CheckpointError(
            f"{path} does not hold the weights of its vision tower {name}: give that tower's own folder of transformers with "
            "--vision-tower."
        )
    return {
        OUR_TOWER + key: tensor
        for key, tensor in folder_tensors(vision_tower).items()
        if key.startswith("vision_model.") and not COMPUTED.search(key)
    }


def _check_tower_names(path: Path, stored: Mapping[str, TensorSource], tower: Any) -> None:
    """Raises CheckpointError for tensors that would be left out in silence."""
    for name in stored:
        is_of_tower = name.startswith("model.image_tower.")
        if tower is None and (is_of_tower or name.startswith("model.mm_projector.")):
            raise CheckpointError(f"{path} has {name}, but its config names no vision tower (mm_image_tower).")
        if is_of_tower and not name.startswith(TOWER_PREFIX):
            raise CheckpointError(
                f"{path} has an unexpected tensor {name}: those of a vision tower begin with {TOWER_PREFIX}."
            )


def _projector_tensors(
    path: Path, config: Mapping[str, Any], stored: Mapping[str, TensorSource]
) -> dict[str, TensorSource]:
    kind = config.get("image_projector_type", config.get("mm_projector_type", "linear"))
    if kind != PROJECTOR:
        raise CheckpointError(f"{path} has a projector of type {kind!r}, expected {PROJECTOR!r}.")
    prefix = next((prefix for prefix in PROJECTOR_PREFIXES if any(key.startswith(prefix) for key in stored)), None)
    if prefix is None:
        raise CheckpointError(f"{path} lacks the projector's weights, {PROJECTOR_PREFIXES[0]}0.weight and others.")
    found: dict[str, TensorSource] = {}
    for key, tensor in stored.items():
        number, _, kind = key.removeprefix(prefix).partition(".")
        if not key.startswith(prefix) or key.startswith("model.mm_projector.video_"):
            continue
        if number not in OUR_PROJECTOR:
            raise CheckpointError(f"{path} has an unexpected tensor {key}: {PROJECTOR} has the layers 0 and 2.")
        found[f"{OUR_PROJECTOR[number]}.{kind}"] = tensor
    return found


def _feature_strategy(path: Path, config: Mapping[str, Any]) -> str:
    feature = config.get("mm_vision_select_feature", "patch")
    if not isinstance(feature, str) or feature not in FEATURES:
        raise CheckpointError(f"{path} has mm_vision_select_feature {feature!r}, expected {' or '.join(FEATURES)}.")
    return FEATURES[feature]


def _add_tokens(path: Path, files: Mapping[str, str], vocab_size: Any) -> tuple[dict[str, str], int]:
    """The files with a tokenizer that has all of `SPECIAL_TOKENS`, and the id of the image token."""
    try:
        tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path / 'tokenizer.json'} cannot be read: {error}.") from error
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
        greatest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        if type(vocab_size) is not int or greatest >= vocab_size:
            raise CheckpointError(
                f"{path} has a vocabulary of {vocab_size}, which leaves no room for {', '.join(missing)}: mote asks with them."
            )
        logger.info("%s: added %s to its tokenizer", path.name, ", ".join(missing))
    return {**files, "tokenizer.json": tokenizer.to_str()}, tokenizer.token_to_id(IMAGE_TOKEN)


def _preprocessor(tower: Tower) -> str:
    side = tower.config.get("image_size")
    values = {
        "image_processor_type": "SiglipImageProcessor",  # no cropping: a picture is resized to the tower's square
        "size": {"height": side, "width": side},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": tower.mean,
        "image_std": tower.std,
    }
    return json.dumps(values, indent=2) + "\n"


def _matches(path: Path) -> bool:
    if not (path / CONFIG).is_file():
        return False
    model_type = read_config(path).get("model_type")
    return isinstance(model_type, str) and model_type in DECODERS


FORMAT = CheckpointFormat("a folder of MoE-LLaVA with its experts", _matches, open_moe_llava)
