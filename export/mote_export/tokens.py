"""Special tokens of a checkpoint and the format of its prompts: one place that both targets and the manifest use."""

import json
import logging
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from mote_export.checkpoint import Checkpoint
from mote_export.text_tokens import (
    around_picture,
    around_question,
    beginning,
    end_tokens,
    plain_template,
    token_text,
)
from mote_runtime.errors import MoteError
from mote_runtime.manifest import IMAGE_PADS, PromptSpec

logger = logging.getLogger(__name__)

# The format the demo model is trained with, and Qwen2's own.
USER_PREFIX = "<|im_start|>user\n"
USER_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<|vision_start|>{image_pads}<|vision_end|>"

IMAGE_TOKEN = "<|image_pad|>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")  # that a tokenizer must have for this format

# The same for transformers and its kin, whose processors put as many <|image_pad|> in place of one as a picture has features. For
# checkpoints that bring no template of their own.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that the runtimes need; those of pictures are None in a text model, and so may be its first one."""

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    image_token_id: int | None = None
    vision_start_token_id: int | None = None
    vision_end_token_id: int | None = None


def special_tokens(checkpoint: Checkpoint) -> SpecialTokens:
    """Of a multimodal model looked up by Qwen2's names in the checkpoint's own tokenizer, of a text model as its files say.

    Raises:
        MoteError: the tokenizer lacks one, or does not agree with the model.
    """
    tokenizer = load_tokenizer(checkpoint)
    greatest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    vocab_size = checkpoint.model.config.text_config.vocab_size
    if greatest >= vocab_size:
        raise MoteError(f"the tokenizer has a token {greatest}, the model's vocabulary only {vocab_size}.")
    return _image_model_tokens(checkpoint, tokenizer) if checkpoint.has_vision else _text_tokens(checkpoint, tokenizer)


def _image_model_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer) -> SpecialTokens:
    def find(token: str) -> int:
        token_id = tokenizer.token_to_id(token)
        if token_id is None:
            raise MoteError(f"tokenizer.json has no token {token}: mote expects Qwen2's special tokens.")
        return int(token_id)

    config = checkpoint.model.config
    image = find("<|image_pad|>")
    if config.image_token_id != image:
        raise MoteError(
            f"config.image_token_id is {config.image_token_id}, but <|image_pad|> is token {image} of the tokenizer."
        )
    return SpecialTokens(
        bos_token_id=find("<|im_start|>"),
        eos_token_ids=(find("<|im_end|>"), find("<|endoftext|>")),
        pad_token_id=find("<|endoftext|>"),
        image_token_id=image,
        vision_start_token_id=find("<|vision_start|>"),
        vision_end_token_id=find("<|vision_end|>"),
    )


def _text_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer) -> SpecialTokens:
    model, config = checkpoint.model, _tokenizer_config(checkpoint)
    ends = end_tokens(
        tokenizer,
        config,
        checkpoint.files.get("generation_config.json"),
        [model.generation_config, model.config.text_config],
        [token for token in CHAT_TOKENS[1:] if token in prompt_spec(checkpoint).user_suffix],
    )

    def find(name: str) -> int | None:
        text = token_text(config.get(name))
        return None if text is None else tokenizer.token_to_id(text)

    pad = find("pad_token")
    return SpecialTokens(
        bos_token_id=find("bos_token"), eos_token_ids=ends, pad_token_id=ends[0] if pad is None else pad
    )


def prompt_spec(checkpoint: Checkpoint) -> PromptSpec:
    """How a prompt is laid out: as the checkpoint's own chat template says; without one in Qwen2's format, or just its text.

    A template of a multimodal model that cannot be used so is left aside with a warning, as many come from their text models.

    Raises:
        MoteError: a text model's template cannot be used.
    """
    template = _own_template(checkpoint)
    if checkpoint.has_vision:
        return _image_prompt(template, _tokenizer_config(checkpoint))
    if template is not None:
        prefix, suffix = around_question(template, _tokenizer_config(checkpoint))
        return PromptSpec(prefix, None, suffix)
    tokenizer = load_tokenizer(checkpoint)
    if has_chat_tokens(tokenizer):
        return PromptSpec(USER_PREFIX, None, USER_SUFFIX)
    return PromptSpec(beginning(tokenizer), None, "")


def _image_prompt(template: str | None, tokenizer_config: dict[str, Any]) -> PromptSpec:
    if template is not None and template != CHAT_TEMPLATE:
        try:
            prefix, image, suffix = around_picture(template, tokenizer_config, IMAGE_TOKEN)
            return PromptSpec(prefix, image.replace(IMAGE_TOKEN, IMAGE_PADS), suffix)
        except MoteError as error:
            logger.warning("prompts are in Qwen2's format: %s", error)
    return PromptSpec(USER_PREFIX, IMAGE, USER_SUFFIX)


def has_chat_tokens(tokenizer: Tokenizer) -> bool:
    """Whether Qwen2's format can be written with its tokens."""
    return all(tokenizer.token_to_id(token) is not None for token in CHAT_TOKENS)


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's, which neither cuts nor pads a text although its file may ask for it. Raises MoteError."""
    try:
        tokenizer = Tokenizer.from_str(checkpoint.files["tokenizer.json"])
    except Exception as error:  # the library raises bare Exception
        raise MoteError(f"tokenizer.json cannot be read: {error}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def chat_template(checkpoint: Checkpoint) -> str:
    """The Jinja template that makes the prompt of mote.json of a user's message: the checkpoint's own or, without one, ours."""
    own = _own_template(checkpoint)
    if own is not None:
        return own
    if checkpoint.has_vision or has_chat_tokens(load_tokenizer(checkpoint)):
        return CHAT_TEMPLATE
    return plain_template(prompt_spec(checkpoint).user_prefix)


def _own_template(checkpoint: Checkpoint) -> str | None:
    if "chat_template.jinja" in checkpoint.files:
        return checkpoint.files["chat_template.jinja"]
    template = _tokenizer_config(checkpoint).get("chat_template")  # where old releases of transformers had it
    return template if isinstance(template, str) else None


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Name to text of the tokenizer's files in an export, with which other clients make the same tokens of a prompt.

    tokenizer.json is the checkpoint's own. tokenizer_config.json is its own too, but always has a chat template, and lets no
    client add tokens around a text, as `mote_runtime` adds none either. Raises MoteError where it is not a JSON object.
    """
    config = _tokenizer_config(checkpoint)
    # Without a class onnxruntime-genai takes the tokenizer for another kind; with Qwen2's it reads byte-level BPE.
    config.setdefault("tokenizer_class", "Qwen2Tokenizer")
    config.update(add_bos_token=False, add_eos_token=False, chat_template=chat_template(checkpoint))
    return {
        "tokenizer.json": checkpoint.files["tokenizer.json"],
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }


def _tokenizer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        config = json.loads(checkpoint.files["tokenizer_config.json"])
    except (ValueError, RecursionError) as error:
        raise MoteError(f"tokenizer_config.json cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise MoteError(f"tokenizer_config.json holds a {type(config).__name__}, expected a JSON object.")
    return config
