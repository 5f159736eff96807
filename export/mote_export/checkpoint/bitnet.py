"""BitNet b1.58's checkpoints (arXiv 2402.17764, transformers.integrations.bitnet): text models without experts, ternary throughout.

A folder of transformers whose `quantization_config` is of method `bitnet`. The linear layers are stored in one of three ways:
`bitlinear` packs codes four to a byte beside a `weight_scale` that divides, `autobitlinear` offline holds them packed or as floats
beside a `weight_scale` that multiplies, and `autobitlinear` online holds master weights. All become `AutoBitLinear`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from mote_export.checkpoint.base import (
    LM_HEAD,
    CheckpointError,
    CheckpointFormat,
    OpenCheckpoint,
    build_skeleton,
    check_names,
    drop_tied_head,
    open_checkpoint,
    parse_config,
    refuse_keys,
)
from mote_export.checkpoint.folder import CONFIG, read_companions, read_config
from mote_export.checkpoint.tensor_files import stored_tensors
from mote_export.decoder import MODEL_TYPES
from mote_export.model import BitnetSettings, MoteForCausalLM, MoteTextConfig
from mote_export.model.bitnet import ALWAYS_FULL
from mote_export.weights import TensorSource

METHOD = "bitnet"
QUANTIZATION = "quantization_config"
LINEAR_CLASSES = ("bitlinear", "autobitlinear")
MODES = ("offline", "online")
KNOWN = {"quant_method", "linear_class", "quantization_mode", "modules_to_not_convert", "use_rms_norm", "rms_norm_eps"}
DEFAULT_EPS = 1e-6
CODES_PER_BYTE = 4
PACKED_DTYPE = "U8"  # safetensors' name
# Old files hold these, which transformers computes.
COMPUTED = "rotary_emb.inv_freq"
DECODER, OUR_DECODER = "model.", "model.language_model."


@dataclass(frozen=True)
class UnpackedSource:
    """Codes that lie four to a byte, as bfloat16 -1, 0 and 1.

    Row r of the packed [R, K], R = ceil(N / 4), holds rows r, R + r, 2R + r and 3R + r of the matrix, in two bits each from the
    lowest up, as code + 1; rows beyond N are padding.
    """

    packed: TensorSource
    name: str
    rows: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows, self.packed.shape[1]

    def read(self) -> Tensor:
        """[N, K]. Raises CheckpointError where two bits are 11, which no code is."""
        packed = self.packed.read()
        shifts = 2 * torch.arange(CODES_PER_BYTE, dtype=torch.uint8)
        codes = ((packed[None] >> shifts[:, None, None]) & 3).flatten(0, 1)[: self.rows]
        damaged = int((codes == 3).sum())
        if damaged:
            raise CheckpointError(
                f"{self.name} is damaged: {damaged} of its {codes.numel()} codes have the bits 11, expected 00, 01 or 10."
            )
        return codes.to(self.dtype) - 1

    def part(self, index: int) -> Tensor:
        return self.read()[index]


@dataclass(frozen=True)
class ReciprocalSource:
    """One number, of a scale that divides, as the float32 one that multiplies."""

    scale: TensorSource
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.scale.shape

    def read(self) -> Tensor:
        return 1.0 / self.scale.read().float()

    def part(self, index: int) -> Tensor:
        return self.read()[index]


@dataclass(frozen=True)
class _Quantization:
    """A checked `quantization_config`."""

    is_packed: bool  # by the class; autobitlinear may be packed as well, which its tensors say
    divides: bool
    settings: BitnetSettings


def open_bitnet(path: Path) -> OpenCheckpoint:
    """Opens a folder of a BitNet text model of a decoder that mote exports.

    Raises:
        CheckpointError: one sentence that says what is wrong.
    """
    config = read_config(path)
    quantization = _quantization(path, config[QUANTIZATION])
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{path} is a BitNet model of type {model_type!r:.80}, expected a decoder of type {', '.join(MODEL_TYPES)}."
        )
    # It names code from before transformers had the class, which is used instead; nothing in the folder is run.
    ignored = {QUANTIZATION, *(("auto_map",) if model_type == METHOD else ())}
    text = {name: value for name, value in config.items() if name not in ignored}
    refuse_keys(path, text)
    values = {
        "model_type": MoteTextConfig.model_type,
        "text_config": _without_foreign(text, model_type),
        "bitnet": quantization.settings.to_dict(),
    }
    parsed = parse_config(path, values)
    files = read_companions(path)
    tensors = _named(path, stored_tensors(path), parsed.text_config.tie_word_embeddings)
    skeleton = build_skeleton(path, parsed, MoteForCausalLM)
    return open_checkpoint(path, path.resolve().name, values, _decoded(path, skeleton, tensors, quantization), files)


def _quantization(path: Path, values: Any) -> _Quantization:
    def fail(name: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{path} has {QUANTIZATION}.{name} {values.get(name)!r:.80}, expected {expected}.")

    unknown = sorted(values.keys() - KNOWN)
    if unknown:
        raise CheckpointError(
            f"{path} has {QUANTIZATION}.{unknown[0]:.80}, which mote does not follow: expected {', '.join(sorted(KNOWN))}."
        )
    linear_class, mode = values.get("linear_class", "bitlinear"), values.get("quantization_mode", "offline")
    norm, eps = values.get("use_rms_norm", False), values.get("rms_norm_eps", DEFAULT_EPS)
    if linear_class not in LINEAR_CLASSES:
        raise fail("linear_class", " or ".join(LINEAR_CLASSES))
    if mode not in MODES:
        raise fail("quantization_mode", " or ".join(MODES))
    if linear_class == "bitlinear" and mode == "online":
        raise fail("quantization_mode", "offline, as bitlinear holds packed weights")
    if type(norm) is not bool:
        raise fail("use_rms_norm", "true or false")
    left_out = values.get("modules_to_not_convert")
    # Without a list transformers leaves out the output layer only; with one, exactly what it names.
    names = [ALWAYS_FULL] if left_out is None else left_out
    try:
        settings = BitnetSettings.from_dict(
            {"online": mode == "online", "modules_to_not_convert": names, "rms_norm_eps": eps if norm else None}
        )
    except ValueError as error:
        raise CheckpointError(f"{path} has a {QUANTIZATION} that cannot be used: {error}.") from error
    return _Quantization(linear_class == "bitlinear", linear_class == "bitlinear", settings)


def _without_foreign(text: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """What is of no use to the decoder's configuration, and what would say where the model lay."""
    names = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype")
    return {**{name: value for name, value in text.items() if name not in names}, "model_type": model_type}


def _named(path: Path, stored: Mapping[str, TensorSource], is_tied: bool) -> dict[str, TensorSource]:
    """By the names of our model; an output layer that is stored although it is tied must be the embedding."""
    found: dict[str, TensorSource] = {}
    for name, tensor in stored.items():
        if not name.endswith(COMPUTED):
            found[OUR_DECODER + name.removeprefix(DECODER) if name.startswith(DECODER) else name] = tensor
    if f"{ALWAYS_FULL}.weight_scale" in found:
        raise CheckpointError(
            f"{path} has a ternary output layer, which mote does not read: expected one that is not converted."
        )
    return drop_tied_head(path, found, f"{OUR_DECODER}embed_tokens.weight") if is_tied else found


def _decoded(
    path: Path, skeleton: Any, tensors: Mapping[str, TensorSource], quantization: _Quantization
) -> dict[str, TensorSource]:
    """With float codes and scales that multiply in place of what the file has."""
    expected = skeleton.state_dict()
    is_tied = skeleton.config.text_config.tie_word_embeddings
    check_names(path, tensors.keys(), expected.keys() - ({LM_HEAD} if is_tied else set()))
    result = dict(tensors)
    for scale_name in [name for name in expected if name.endswith(".weight_scale")]:
        name = scale_name.removesuffix("_scale")
        stored, shape = tensors[name], tuple(expected[name].shape)
        if stored.dtype == PACKED_DTYPE:
            packed_shape = (-(-shape[0] // CODES_PER_BYTE), shape[1])
            if stored.shape != packed_shape:
                raise CheckpointError(
                    f"{path}: {name} has shape {list(stored.shape)}, a packed matrix of {list(shape)} has {list(packed_shape)}."
                )
            result[name] = UnpackedSource(stored, name, shape[0])
        elif quantization.is_packed:
            raise CheckpointError(
                f"{path}: {name} is {stored.dtype}, but its {QUANTIZATION} says linear_class 'bitlinear', whose weights are packed "
                "in bytes: expected U8."
            )
        if quantization.divides:
            result[scale_name] = ReciprocalSource(tensors[scale_name])
    return result


def _matches(path: Path) -> bool:
    if not (path / CONFIG).is_file():
        return False
    values = read_config(path)
    quantization = values.get(QUANTIZATION)
    return isinstance(quantization, dict) and quantization.get("quant_method") == METHOD and _is_known(values)


def _is_known(values: Mapping[str, Any]) -> bool:
    model_type = values.get("model_type")
    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


FORMAT = CheckpointFormat("a folder of a BitNet b1.58 text model", _matches, open_bitnet)
