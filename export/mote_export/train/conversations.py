"""Conversations in LLaVA's JSON: read, checked, and put into the words of a chat template.

An entry is {"image": path below the image folder, "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
{"from": "gpt", "value": "A cat."}, ...]}; without "image" it is text only. Files are hostile until checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from mote_export.llava import ANSWERING, ASKING, MARKER, is_picture_path, is_unicode
from mote_export.train.settings import TrainingError

ROLES = {**dict.fromkeys(ASKING, "user"), **dict.fromkeys(ANSWERING, "assistant"), "system": "system"}
MAX_TEMPLATE = 1 << 16
_PROBE = "mote asks a question"


class EntryError(ValueError):
    """What is wrong with one entry, as the end of a sentence."""


@dataclass(frozen=True)
class Conversation:
    """Questions and answers about a picture, or about none.

    Attributes:
        where: file and number of the entry, for messages.
        system: the text before the first question, or None.
        turns: pairs of question and answer, without the marker of the picture.
        image: path below the image folder, or None.
    """

    where: str
    system: str | None
    turns: tuple[tuple[str, str], ...]
    image: str | None


def read_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each entry of a .json or .jsonl file is, and the entry, unchecked; an EntryError where a line is no JSON.

    Raises:
        TrainingError: the file cannot be read, or is no list of entries.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".jsonl":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield f"{path}:{number}", _parse_line(line)
                return
            entries = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} cannot be read as a list of conversations in JSON: {error}.") from error
    if not isinstance(entries, list):
        raise TrainingError(f"{path} holds a JSON {type(entries).__name__}, expected LLaVA's list of conversations.")
    for number, entry in enumerate(entries):
        yield f"{path}, entry {number}", entry


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return EntryError(f"it is no JSON: {error}")


def parse_entry(where: str, entry: Any) -> Conversation:
    """Raises EntryError where the entry is not as this module's documentation says."""
    if isinstance(entry, EntryError):
        raise entry
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise EntryError('it is no object with a list "conversations"')
    messages = [_message(message) for message in entry["conversations"]]
    system = None
    if messages and messages[0][0] == "system":
        system = messages.pop(0)[1]
    roles = [role for role, _ in messages]
    if not messages or roles != ["user", "assistant"] * (len(messages) // 2):
        raise EntryError(f"turns are of {', '.join(roles) or 'nobody'}, expected human and gpt by turns")
    image = _image(entry.get("image"))
    questions = [text for _, text in messages[0::2]]
    answers = [text for _, text in messages[1::2]]
    markers = [text.count(MARKER) for text in (*questions, *answers, system or "")]
    if markers[0] != (image is not None) or any(markers[1:]):
        raise EntryError(
            f"{MARKER} stands in it {sum(markers)} times, expected once in the first question of a picture only"
        )
    questions = [text.replace(MARKER, "").strip() for text in questions]  # as mote-eval asks them
    if not all(answer.strip() for answer in answers):
        raise EntryError("an answer is empty")
    return Conversation(where, system, tuple(zip(questions, answers, strict=True)), image)


def _message(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise EntryError('a turn is no object with a text "value"')
    role = message.get("from")
    if not isinstance(role, str) or role not in ROLES:
        raise EntryError(f'a turn is "from" {role!r}, expected human, gpt or system')
    if not is_unicode(message["value"]):
        raise EntryError('the "value" of a turn holds half of a character, expected valid Unicode')
    return ROLES[role], message["value"]


def _image(name: Any) -> str | None:
    if name is None:
        return None
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    if not isinstance(name, str) or not name:
        raise EntryError(f'"image" is {name!r}, expected the path of one picture')
    if not is_picture_path(name):
        raise EntryError(f'"image" is {name!r}, which is not below the image folder')
    return name


@dataclass(frozen=True)
class Segment:
    """A piece of a conversation in tokens; `learnt` where the loss is on them."""

    ids: list[int]
    learnt: bool


class ChatFormat:
    """A chat template and its tokenizer.

    Args:
        tokenizer: of the model.
        template: a Jinja template; it is run in transformers' sandbox.
        named: tokens that templates may name: bos_token, eos_token, ...
        image_token: that stands for a picture in a rendered template; None for a model without pictures.
        num_image_tokens: how often it is repeated.

    Raises:
        TrainingError: the template cannot be run, or does not show a message, or the picture, as it is.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        named: Mapping[str, str],
        image_token: str | None = None,
        num_image_tokens: int = 0,
    ) -> None:
        if len(template) > MAX_TEMPLATE:
            raise TrainingError(f"the chat template has {len(template)} characters, expected at most {MAX_TEMPLATE}.")
        self._tokenizer, self._template, self._named = tokenizer, template, dict(named)
        self._image_token, self._num_image_tokens = image_token, num_image_tokens
        self._added = frozenset(tokenizer.get_added_tokens_decoder())
        self._in_parts = _PROBE not in self._render([{"role": "user", "content": _PROBE}])
        self._image_in_parts = True
        if _PROBE not in self._render([self._user(_PROBE, False)]):
            raise TrainingError("the chat template does not hold the user's message unchanged, which training needs.")
        if image_token is not None and self._count_images([self._user(_PROBE, True)]) != 1:
            self._image_in_parts = False  # a template for texts: the picture stands in the text
            if self._count_images([self._user(_PROBE, True)]) != 1:
                raise TrainingError(f"the chat template does not show a picture as one {image_token}.")

    def joint(self, conversation: Conversation) -> list[Segment]:
        """The whole conversation, every turn after the earlier ones. Raises EntryError."""
        messages = self._system(conversation)
        for number, (question, answer) in enumerate(conversation.turns):
            messages.append(self._user(question, conversation.image is not None and number == 0))
            messages.append(self._text("assistant", answer))
        return [self._segment(text, learnt) for text, learnt in self._texts(conversation, messages)]

    def independent(self, conversation: Conversation) -> tuple[list[int], list[list[Segment]]]:
        """The tokens up to the picture, and after them every turn as if it were the only one. Raises EntryError."""
        has_image = conversation.image is not None
        heads, turns = set(), []
        for question, answer in conversation.turns:
            messages = [*self._system(conversation), self._user(question, has_image), self._text("assistant", answer)]
            texts = list(self._texts(conversation, messages))
            if has_image:
                assert self._image_token is not None
                end = texts[0][0].index(self._image_token) + len(self._image_token)
                heads.add(texts[0][0][:end])
                texts[0] = (texts[0][0][end:], False)
            turns.append([self._segment(text, learnt) for text, learnt in texts])
        if len(heads) > 1:
            raise EntryError("the chat template puts different texts before the picture")
        return self._encode(heads.pop()) if heads else [], turns

    def _system(self, conversation: Conversation) -> list[dict[str, Any]]:
        return [] if conversation.system is None else [self._text("system", conversation.system)]

    def _text(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._in_parts else text}

    def _user(self, text: str, with_image: bool) -> dict[str, Any]:
        if not with_image:
            return self._text("user", text)
        if self._image_in_parts:
            return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        markers = [f"<|vision_start|>{self._image_token}<|vision_end|>", str(self._image_token)]
        is_qwen = self._tokenizer.token_to_id("<|vision_start|>") is not None
        return self._text("user", markers[0 if is_qwen else 1] + text)

    def _count_images(self, messages: Sequence[Mapping[str, Any]]) -> int:
        try:
            return self._render(messages).count(str(self._image_token))
        except TrainingError:  # a template for texts that adds a list to a text
            return 0

    def _texts(self, conversation: Conversation, messages: list[dict[str, Any]]) -> Iterator[tuple[str, bool]]:
        """Pieces of the rendered conversation, prompts and answers by turns; what follows the last answer's end is left out."""
        if self._image_token is not None:
            given = [*(text for turn in conversation.turns for text in turn), conversation.system or ""]
            if any(self._image_token in text for text in given):
                raise EntryError(f"a text holds {self._image_token}, which stands for a picture")
        done = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:number], opens_answer=True)
            whole = self._render(messages[: number + 1])
            if not (prompt.startswith(done) and whole.startswith(prompt)):
                raise EntryError("the chat template changes earlier turns when a later one follows")
            answer = whole[len(prompt) :].rstrip()
            yield prompt[len(done) :], False
            yield self._with_end(answer), True
            done = prompt + answer

    def _with_end(self, answer: str) -> str:
        """Some templates write no end token, but a model has to learn when to stop."""
        last = self._tokenizer.encode(answer, add_special_tokens=False).ids[-1:]
        return answer if last and last[0] in self._added else answer + self._named.get("eos_token", "")

    def _segment(self, text: str, learnt: bool) -> Segment:
        return Segment(self._encode(text), learnt)

    def _encode(self, text: str) -> list[int]:
        if self._image_token is not None:
            text = text.replace(self._image_token, self._image_token * self._num_image_tokens)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _render(self, messages: Sequence[Mapping[str, Any]], opens_answer: bool = False) -> str:
        try:
            rendered, _ = render_jinja_template(
                [list(messages)], chat_template=self._template, add_generation_prompt=opens_answer, **self._named
            )
        except Exception as error:  # whatever an expression in a template may raise
            raise TrainingError(f"the chat template cannot be used: {type(error).__name__}: {error}.") from error
        return str(rendered[0])
