"""Configuration files for onnxruntime-genai's model type `videochat_flash_qwen`: a LLaVA over a Qwen2 decoder.

genai refuses keys it does not know and needs the plugin as a bare file name inside the folder.
"""

import json
from pathlib import Path
from typing import Any

from mote_runtime.manifest import ImageSpec, ModelSpec

MODEL_TYPE = "videochat_flash_qwen"


def write_genai_config(folder: Path, model: ModelSpec, plugin_library: str | None) -> None:
    """genai_config.json; without a plugin for a portable export."""
    config = {
        "model": {
            "type": MODEL_TYPE,
            "context_length": model.context_length,
            "vocab_size": model.vocab_size,
            "pad_token_id": model.pad_token_id,
            "bos_token_id": model.bos_token_id,
            "eos_token_id": list(model.eos_token_ids),
            "image_token_id": model.image_token_id,
            "vision": {
                "filename": "vision.onnx",
                "config_filename": "processor_config.json",
                "num_visual_tokens": model.num_image_tokens,
                "inputs": {"pixel_values": "pixel_values"},
                "outputs": {"image_features": "image_features"},
            },
            "embedding": {
                "filename": "embedding.onnx",
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds"},
            },
            "decoder": _decoder(model, plugin_library),
        },
        "search": {
            "do_sample": False,
            "min_length": 0,
            "max_length": model.context_length,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
    _write(folder / "genai_config.json", config)


def _decoder(model: ModelSpec, plugin_library: str | None) -> dict[str, Any]:
    plugin = {} if plugin_library is None else {"custom_ops_library": plugin_library}
    return {
        "filename": "model.onnx",
        "session_options": {"provider_options": [], **plugin},
        "head_size": model.head_dim,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "num_hidden_layers": model.num_hidden_layers,
        "inputs": {
            "inputs_embeds": "inputs_embeds",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def write_processor_config(folder: Path, image: ImageSpec) -> None:
    """processor_config.json: the image pipeline. Mean and std must be floats in the JSON; genai rejects integers."""
    steps: list[tuple[str, dict[str, Any]]] = [
        ("DecodeImage", {"color_space": "RGB"}),
        ("Resize", {"height": image.height, "width": image.width, "interpolation": "CUBIC", "keep_aspect_ratio": 0}),
        ("Rescale", {"rescale_factor": float(image.rescale_factor)}),
        ("Normalize", {"mean": [float(v) for v in image.mean], "std": [float(v) for v in image.std]}),
        ("Permute3D", {"dims": [2, 0, 1]}),
    ]
    transforms = [
        {"operation": {"name": name.lower(), "type": name, "attrs": attributes}} for name, attributes in steps
    ]
    _write(folder / "processor_config.json", {"processor": {"name": "mote_image_processor", "transforms": transforms}})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
