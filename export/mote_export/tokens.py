"""Special tokens of a checkpoint and the format of its prompts: one place that both targets and the manifest use."""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from mote_export.checkpoint import Checkpoint
from mote_runtime.errors import MoteError

# The format the demo model is trained with, and Qwen2's own.
USER_PREFIX = "<|im_start|>user\n"
USER_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<|vision_start|>{image_pads}<|vision_end|>"

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
    """Token ids that the runtimes need."""

    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int


def special_tokens(checkpoint: Checkpoint) -> SpecialTokens:
    """Looked up by Qwen2's names in the checkpoint's own tokenizer.

    Raises:
        MoteError: the tokenizer lacks one, or does not agree with the model.
    """
    tokenizer = load_tokenizer(checkpoint)

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
    greatest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if greatest >= config.text_config.vocab_size:
        raise MoteError(
            f"the tokenizer has a token {greatest}, the model's vocabulary only {config.text_config.vocab_size}."
        )
    return SpecialTokens(
        bos_token_id=find("<|im_start|>"),
        eos_token_ids=(find("<|im_end|>"), find("<|endoftext|>")),
        pad_token_id=find("<|endoftext|>"),
        image_token_id=image,
        vision_start_token_id=find("<|vision_start|>"),
        vision_end_token_id=find("<|vision_end|>"),
    )


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    try:
        return Tokenizer.from_str(checkpoint.files["tokenizer.json"])
    except Exception as error:  # the library raises bare Exception
        raise MoteError(f"tokenizer.json cannot be read: {error}.") from error


def chat_template(checkpoint: Checkpoint) -> str:
    """The checkpoint's own Jinja template, or `CHAT_TEMPLATE`, with which a user's message becomes the prompt of mote.json."""
    if "chat_template.jinja" in checkpoint.files:
        return checkpoint.files["chat_template.jinja"]
    template = _tokenizer_config(checkpoint).get("chat_template")  # where old releases of transformers had it
    return template if isinstance(template, str) else CHAT_TEMPLATE


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
