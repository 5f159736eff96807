"""What stock transformers reads beside weights and tokenizer: how to generate, how to process a picture, how to lay out a chat."""

import copy
import json

from transformers import GenerationConfig

from mote_export.checkpoint.base import Checkpoint
from mote_export.manifest import CLASS_TOKENS, num_image_tokens
from mote_export.tokens import chat_template, has_chat_tokens, load_tokenizer, special_tokens

PROCESSOR_CONFIG, CHAT_TEMPLATE_FILE, GENERATION_CONFIG = (
    "processor_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


def stock_files(checkpoint: Checkpoint) -> dict[str, str]:
    """The checkpoint's own files and those that it lacks for AutoProcessor, pipelines and `generate`: name to text.

    Raises:
        MoteError: the tokenizer or the vision tower is not one that mote exports.
    """
    if not checkpoint.has_vision:
        return text_files(checkpoint)
    generated = {
        GENERATION_CONFIG: generation_config(checkpoint).to_json_string(),
        CHAT_TEMPLATE_FILE: chat_template(checkpoint),
    }
    # Always of the model itself: what a processor is told otherwise would not fit it.
    return {**generated, **checkpoint.files, PROCESSOR_CONFIG: _dump(processor_config(checkpoint))}


def text_files(checkpoint: Checkpoint) -> dict[str, str]:
    """`stock_files` of a model without pictures. Its tokenizer may be any: what ends an answer is said by the model's own files."""
    generated = {GENERATION_CONFIG: checkpoint.model.generation_config.to_json_string()}
    if has_chat_tokens(load_tokenizer(checkpoint)):
        generated[CHAT_TEMPLATE_FILE] = chat_template(checkpoint)
    return {**generated, **checkpoint.files}


def generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    """The model's own, with the end tokens of its chat format; an image token, if it has one, is never an answer."""
    tokens = special_tokens(checkpoint)
    config = copy.deepcopy(checkpoint.model.generation_config)
    config._from_model_config = False  # else generate() would take it for a stale copy and make it anew
    config.bos_token_id = tokens.bos_token_id
    config.eos_token_id = list(tokens.eos_token_ids)
    config.pad_token_id = tokens.pad_token_id
    if tokens.image_token_id is not None:
        config.suppress_tokens = [tokens.image_token_id]
    return config


def processor_config(checkpoint: Checkpoint) -> dict[str, str | int]:
    """LlavaProcessor's settings, from which it counts the image tokens of a picture."""
    config = checkpoint.model.config
    num_image_tokens(checkpoint)  # refuses a tower that is not in the table below
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<|image_pad|>",
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": CLASS_TOKENS[config.vision_config.model_type],
    }


def _dump(content: dict[str, str | int]) -> str:
    return json.dumps(content, indent=2) + "\n"
