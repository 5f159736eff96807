"""Writes `mote.json` in the terms that the runtime reads it in (docs/export-format.md)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mote_export.checkpoint import Checkpoint
from mote_export.packing import LAYOUT_VERSION
from mote_export.passes import PackOptions
from mote_export.passes.attention import attention_head_dim
from mote_export.tokens import prompt_spec, special_tokens
from mote_runtime.errors import MoteError
from mote_runtime.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_NAME,
    ImageSpec,
    Manifest,
    ModelSpec,
    MoeSpec,
    sha256,
)

VERSIONED_PACKAGES = ("mote", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "executorch")
CLASS_TOKENS = {"siglip_vision_model": 0, "clip_vision_model": 1}
BICUBIC = 3  # PIL's number in preprocessor_config.json


@dataclass(frozen=True)
class Source:
    """The checkpoint an export was made from."""

    name: str
    sha256: str | None

    @classmethod
    def of(cls, path: Path) -> "Source":
        """A file is hashed; a folder is named only."""
        # Resolved only where a path has no name of its own, such as ".".
        return cls(path.name or path.resolve().name, sha256(path) if path.is_file() else None)


def model_spec(checkpoint: Checkpoint, context_length: int) -> ModelSpec:
    config, tokens = checkpoint.model.config, special_tokens(checkpoint)
    text = config.text_config
    return ModelSpec(
        name=checkpoint.name,
        architecture=type(checkpoint.model).__name__,
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=attention_head_dim(text),
        context_length=context_length,
        eos_token_ids=tokens.eos_token_ids,
        bos_token_id=tokens.bos_token_id,
        pad_token_id=tokens.pad_token_id,
        image_token_id=tokens.image_token_id,
        vision_start_token_id=tokens.vision_start_token_id,
        vision_end_token_id=tokens.vision_end_token_id,
        num_image_tokens=num_image_tokens(checkpoint),
    )


def num_image_tokens(checkpoint: Checkpoint) -> int | None:
    """Features per image: the patches and CLIP's class token, less the first feature that strategy "default" drops.

    None for a text model. Raises MoteError for a vision tower whose features cannot be counted from its configuration.
    """
    if not checkpoint.has_vision:
        return None
    config = checkpoint.model.config
    if config.vision_config.model_type not in CLASS_TOKENS:
        raise MoteError(
            f"the vision tower is of type {config.vision_config.model_type!r}, expected {' or '.join(CLASS_TOKENS)}."
        )
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    dropped = config.vision_feature_select_strategy == "default"
    return int(patches + CLASS_TOKENS[config.vision_config.model_type] - dropped)


def moe_spec(checkpoint: Checkpoint, pack: PackOptions) -> MoeSpec:
    config = checkpoint.model.config
    settings = config.moe_settings
    has_ternary_experts = settings is not None and settings.experts == "ternary"
    return MoeSpec(
        layers=settings.layers if settings is not None and has_ternary_experts else (),
        num_experts=1 if settings is None else settings.num_experts,  # BitNet's one FFN a layer
        top_k=1 if settings is None else settings.top_k,
        normalize_topk=settings is not None and settings.normalize_topk,
        intermediate_size=config.text_config.intermediate_size,
        packing=pack.packing,
        layout_version=LAYOUT_VERSION,
        shared_expert=pack.shared_expert,
        shared_group_size=pack.operator_group_size,
    )


def image_spec(checkpoint: Checkpoint) -> ImageSpec | None:
    """From preprocessor_config.json (transformers' image processors); None for a text model.

    Raises:
        MoteError: the file is missing or asks for what the runtime does not do.
    """
    if not checkpoint.has_vision:
        return None
    name = "preprocessor_config.json"
    if name not in checkpoint.files:
        raise MoteError(f"the checkpoint lacks {name}: save the image processor with the model.")
    try:
        values = json.loads(checkpoint.files[name])
        size, side = values["size"], checkpoint.model.config.vision_config.image_size
        if (size.get("height"), size.get("width")) != (side, side):
            raise MoteError(f"{name} resizes images to {size}, but the vision tower takes {side} x {side}.")
        if values.get("resample", BICUBIC) != BICUBIC or values.get("do_center_crop") or values.get("do_pad"):
            raise MoteError(
                f"{name} asks for cropping, padding or a filter other than bicubic, which mote does not do."
            )
        for step in ("do_resize", "do_rescale", "do_normalize"):
            if values.get(step) is False:
                raise MoteError(f"{name} switches {step} off, but mote always resizes, rescales and normalizes.")
        mean, std = (tuple(float(value) for value in values[key]) for key in ("image_mean", "image_std"))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("image_mean and image_std have three values each")
        factor = float(values["rescale_factor"])
        if not all(map(math.isfinite, (*mean, *std, factor))) or min(*std, factor) <= 0:
            raise ValueError("image_mean, image_std and rescale_factor are finite, the latter two positive")
        return ImageSpec(side, side, "bicubic", factor, mean, std)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise MoteError(f"{name} cannot be used: {error!r}.") from error


def write_manifest(
    folder: Path,
    runtime: str,
    checkpoint: Checkpoint,
    context_length: int,
    pack: PackOptions,
    source: Source,
    plugin_library: str | None,
    memory: Mapping[str, Any],
    stored: Sequence[Mapping[str, Any]] = (),
    kv_cache: Mapping[str, Any] | None = None,
) -> None:
    """Describes every other file that lies in `folder` now, as not verified; `stored` are parts outside of the experts."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST_NAME)
    document = {
        **_description(checkpoint, context_length, runtime, pack),
        "plugin": {"library": plugin_library} if plugin_library else None,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files},
        "memory": dict(memory),
        **_quantization(pack, stored, kv_cache),
        "verification": {"skipped": True},
        "source": asdict(source),
        "versions": {name: _version(name) for name in VERSIONED_PACKAGES},
    }
    _write(folder / MANIFEST_NAME, document)


def _quantization(
    pack: PackOptions, stored: Sequence[Mapping[str, Any]], kv_cache: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The section `quantization`; absent where everything is stored as older exports did."""
    names = ("quantizer", "linear", "embedding", "vision", "full_experts", "linear_group_size")
    chosen = {name: getattr(pack, name) for name in names}
    if chosen == {name: getattr(PackOptions(), name) for name in names} and kv_cache is None:
        return {}
    cache = {} if kv_cache is None else {"kv_cache": dict(kv_cache)}
    return {"quantization": {**chosen, "parts": list(stored), **cache}}


def add_verification(folder: Path, verification: Mapping[str, Any]) -> None:
    """Puts the outcome into a manifest that is written already; the files are not read again."""
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_text(encoding="utf-8"))
    _write(path, {**document, "verification": dict(verification)})


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def check_manifest(checkpoint: Checkpoint, context_length: int, runtime: str, pack: PackOptions) -> Manifest:
    """What an export of `checkpoint` will say of itself; raises MoteError where the runtime would refuse it."""
    document = _description(checkpoint, context_length, runtime, pack)
    return Manifest.parse(Path(checkpoint.name), document, files_are_known=False)


def _description(checkpoint: Checkpoint, context_length: int, runtime: str, pack: PackOptions) -> dict[str, Any]:
    """What is known before anything is written."""
    image = image_spec(checkpoint)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "target": runtime,
        "model": asdict(model_spec(checkpoint, context_length)),
        "moe": asdict(moe_spec(checkpoint, pack)),
        "image": asdict(image) if image else None,
        "prompt": asdict(prompt_spec(checkpoint)),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
