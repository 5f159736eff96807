"""Configuration files for onnxruntime-genai: model type `videochat_flash_qwen`, a LLaVA over a Qwen2 decoder, for models that take
pictures, and `decoder-pipeline`, graphs one behind the other, for text models: their folder has the same two graphs.

genai refuses keys it does not know and needs the plugin as a bare file name inside the folder.
"""

import json
from pathlib import Path
from typing import Any

from mote_runtime.manifest import ImageSpec, ModelSpec

MODEL_TYPE, TEXT_MODEL_TYPE = "videochat_flash_qwen", "decoder-pipeline"
CACHE_NAMES = ("past_key_values.%d.key", "past_key_values.%d.value", "present.%d.key", "present.%d.value")


def write_genai_config(folder: Path, model: ModelSpec, plugin_library: str | None) -> None:
    """genai_config.json; without a plugin for a portable export."""
    begin = {} if model.bos_token_id is None else {"bos_token_id": model.bos_token_id}
    config = {
        "model": {
            "type": TEXT_MODEL_TYPE if model.image_token_id is None else MODEL_TYPE,
            "context_length": model.context_length,
            "vocab_size": model.vocab_size,
            "pad_token_id": model.pad_token_id,
            **begin,
            "eos_token_id": list(model.eos_token_ids),
            **(_text_graphs if model.image_token_id is None else _image_graphs)(model, plugin_library),
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


def _image_graphs(model: ModelSpec, plugin_library: str | None) -> dict[str, Any]:
    decoder = _decoder(model, "inputs_embeds")
    return {
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
        "decoder": {"filename": "model.onnx", "session_options": _session_options(plugin_library), **decoder},
    }


def _text_graphs(model: ModelSpec, plugin_library: str | None) -> dict[str, Any]:
    """Both graphs in turn; what one gives to the other has the name that both know, and all else is the decoder's."""
    names = [[name % layer for name in CACHE_NAMES] for layer in range(model.num_hidden_layers)]
    past = [name for keys_and_values in names for name in keys_and_values[:2]]
    present = [name for keys_and_values in names for name in keys_and_values[2:]]
    graphs = [
        {"embedding": {"filename": "embedding.onnx", "inputs": ["input_ids"], "outputs": ["inputs_embeds"]}},
        {
            "decoder": {
                "filename": "model.onnx",
                "inputs": ["inputs_embeds", "attention_mask", *past],
                "outputs": ["logits", *present],
            }
        },
    ]
    decoder = _decoder(model, "input_ids")
    return {"decoder": {"session_options": _session_options(plugin_library), **decoder, "pipeline": graphs}}


def _session_options(plugin_library: str | None) -> dict[str, Any]:
    plugin = {} if plugin_library is None else {"custom_ops_library": plugin_library}
    return {"provider_options": [], **plugin}


def _decoder(model: ModelSpec, first_input: str) -> dict[str, Any]:
    past_key, past_value, present_key, present_value = CACHE_NAMES
    return {
        "head_size": model.head_dim,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "num_hidden_layers": model.num_hidden_layers,
        "inputs": {
            first_input: first_input,
            "attention_mask": "attention_mask",
            "past_key_names": past_key,
            "past_value_names": past_value,
        },
        "outputs": {"logits": "logits", "present_key_names": present_key, "present_value_names": present_value},
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
