"""The demo model's tokenizer and its one prompt format.

The tokenizer is Qwen2's in small: the same pre-tokenization (so that every decimal digit is a token), the same special
tokens and NFC, with a byte-level BPE of its own, trained on this project's questions and answers. All 256 bytes are in
the vocabulary, so any text can be encoded, if not understood.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Qwen2TokenizerFast, SiglipImageProcessor

from scenes import MODEL_SIZE, PLACES

VOCAB_SIZE = 512
PATCH_SIZE = 12
NUM_IMAGE_TOKENS = (MODEL_SIZE // PATCH_SIZE) ** 2
MAX_LENGTH = 512

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"

# In Qwen2-VL's order. The ones without a use here keep clients that look them up by name content.
SPECIAL_TOKENS = (
    END_OF_TEXT,
    IM_START,
    IM_END,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    IMAGE_PAD,
    "<|video_pad|>",
)

# Qwen2's own, from its tokenizer.json.
_PRE_TOKENIZATION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

USER_PREFIX = f"{IM_START}user\n"
IMAGE_PREFIX = f"{USER_PREFIX}{VISION_START}{IMAGE_PAD * NUM_IMAGE_TOKENS}{VISION_END}"
USER_SUFFIX = f"{IM_END}\n{IM_START}assistant\n"


def format_prompt(question: str) -> str:
    """The text the model continues: one image, one question about it, and the assistant's turn opened."""
    return f"{IMAGE_PREFIX}{question}{USER_SUFFIX}"


def describe_in_words(digits: Iterable[int | None]) -> str:
    """A scene as text, for the decoder's pretraining in worlds without pictures."""
    words = ("none" if digit is None else str(digit) for digit in digits)
    return " ".join(f"{place} {word}." for place, word in zip(PLACES, words, strict=True))


def train_tokenizer(corpus: Iterable[str]) -> Qwen2TokenizerFast:
    """Train the byte-level BPE on a corpus. The result depends on nothing but the corpus."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKENIZATION), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        unk_token=None,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (IM_END, END_OF_TEXT)],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={"image_token": IMAGE_PAD},
    )


def image_processor() -> SiglipImageProcessor:
    """Bicubic to MODEL_SIZE square, then [0, 255] to [-1, 1]."""
    return SiglipImageProcessor(
        size={"height": MODEL_SIZE, "width": MODEL_SIZE},
        resample=3,
        rescale_factor=1 / 255,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_convert_rgb=True,
    )


def processor_files(tokenizer: Qwen2TokenizerFast, folder: Path) -> dict[str, str]:
    """The tokenizer's and the image processor's files, name to text, as `save_pretrained` writes them to `folder`."""
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    wanted = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json")
    return {name: (folder / name).read_text(encoding="utf-8") for name in wanted}
