"""Special tokens of a checkpoint and the format of its prompts: one place that both targets and the manifest use."""

from dataclasses import dataclass

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
