"""Prompt and end tokens of a text model, whose tokenizer may be any: its own files say them.

A multimodal model has Qwen2's special tokens and one format of prompts (tokens.py). Text models come with the templates of their
families, so the template itself is asked what it puts around a user's message.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer
from transformers import GenerationConfig, PretrainedConfig
from transformers.utils.chat_template_utils import render_jinja_template

from mote_runtime.errors import MoteError

QUESTION = "mote asks a question"  # stands for a user's text; no template has it
MAX_TEMPLATE = 1 << 16
MAX_ID = (1 << 31) - 1  # tokenizers raises OverflowError for what is no 32-bit number
NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
)  # of tokenizer_config.json, which templates may name


def around_question(template: str, tokenizer_config: Mapping[str, Any]) -> tuple[str, str]:
    """What a chat template puts before and behind a user's message, up to where the answer begins.

    The template runs in Jinja's sandbox, as transformers runs it: it can take time, but reach nothing. What it makes of the date is
    from now on part of the prompt.

    Raises:
        MoteError: it cannot be run, or makes something else of the message.
    """
    if len(template) > MAX_TEMPLATE:
        raise MoteError(f"the chat template has {len(template)} characters, expected at most {MAX_TEMPLATE}.")
    return _around(QUESTION, template, tokenizer_config)


def around_picture(template: str, tokenizer_config: Mapping[str, Any], image_token: str) -> tuple[str, str, str]:
    """As `around_question` for messages that may begin with a picture: what is before it, what it becomes, what is behind the text.

    Raises:
        MoteError: it cannot be run, or a picture does not come once, directly before the text of its message.
    """
    text = {"type": "text", "text": QUESTION}
    prefix, suffix = _around([text], template, tokenizer_config)
    before, after = _around([{"type": "image"}, text], template, tokenizer_config)
    picture = before.removeprefix(prefix)
    if after != suffix or not before.startswith(prefix) or picture.count(image_token) != 1:
        raise MoteError(
            f"the chat template does not put a picture as {image_token} once before the text of its message."
        )
    return prefix, picture, suffix


def _around(content: Any, template: str, tokenizer_config: Mapping[str, Any]) -> tuple[str, str]:
    named = {name: token_text(tokenizer_config.get(name)) or "" for name in NAMED_TOKENS}
    message = [{"role": "user", "content": content}]
    try:
        rendered, _ = render_jinja_template([message], chat_template=template, add_generation_prompt=True, **named)
    except Exception as error:  # whatever an expression in a template may raise
        raise MoteError(f"the chat template cannot be used: {type(error).__name__}: {error}.") from error
    prefix, found, suffix = rendered[0].partition(QUESTION)
    if not found or QUESTION in suffix:
        raise MoteError("the chat template does not hold the user's message once and unchanged, which mote needs.")
    return prefix, suffix


def beginning(tokenizer: Tokenizer) -> str:
    """The special tokens that the tokenizer itself puts before a text, such as <s>: a prompt without a template begins so."""
    encoding = tokenizer.encode("x")
    tokens = zip(encoding.tokens, encoding.special_tokens_mask, strict=True)
    first = []
    for token, is_special in tokens:
        if not is_special:
            break
        first.append(token)
    return "".join(first)


def plain_template(prefix: str) -> str:
    """A chat template that gives `prefix` and the messages, and nothing else."""
    # Not escaped: Jinja takes the two escapes of a rarer character for two characters.
    literal = json.dumps(prefix, ensure_ascii=False)
    return "{{ " + literal + " }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def end_tokens(
    tokenizer: Tokenizer,
    tokenizer_config: Mapping[str, Any],
    generation_config: str | None,
    model_configs: Iterable[PretrainedConfig | GenerationConfig | None],
    more: Iterable[str],
) -> tuple[int, ...]:
    """Ids that end an answer: of generation_config.json, or the first configuration that has any; and the tokenizer's end token.

    Args:
        generation_config: the file's text, if there is one.
        model_configs: where transformers looks in turn.
        more: tokens that end an answer too, if the tokenizer has them.

    Raises:
        MoteError: none is named, or one is no token.
    """
    found: list[Any] = _as_list(_parse(generation_config).get("eos_token_id")) if generation_config else []
    for config in model_configs:
        found = found or _as_list(getattr(config, "eos_token_id", None))
    for token in (token_text(tokenizer_config.get("eos_token")), *more):
        found += [] if token is None or tokenizer.token_to_id(token) is None else [tokenizer.token_to_id(token)]
    for token_id in found:
        if type(token_id) is not int or not 0 <= token_id <= MAX_ID or tokenizer.id_to_token(token_id) is None:
            raise MoteError(
                f"the checkpoint has the end token {token_id!r}, expected the id of a token of its tokenizer."
            )
    if not found:
        raise MoteError(
            "the checkpoint names no token that ends an answer: give it an eos_token_id in generation_config.json or "
            "an eos_token in tokenizer_config.json."
        )
    return tuple(dict.fromkeys(found))


def token_text(value: Any) -> str | None:
    """A token of tokenizer_config.json, which is a string or an object with its content."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _parse(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MoteError(f"generation_config.json cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise MoteError(f"generation_config.json holds a {type(content).__name__}, expected a JSON object.")
    return content
