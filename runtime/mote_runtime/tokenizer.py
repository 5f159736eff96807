"""Prompts to token ids and token ids to text, by the `tokenizer.json` of the exported folder."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from mote_runtime.errors import ExportFolderError, ImageError, MoteError
from mote_runtime.manifest import IMAGE_PADS, ModelSpec, PromptSpec

_REPLACEMENT = "\ufffd"


class PromptTokenizer:
    """Builds the prompt of the manifest around a user's text, in which no special token is ever recognised."""

    def __init__(self, path: Path, model: ModelSpec, prompt: PromptSpec) -> None:
        """Load `path`; raises ExportFolderError where it is no tokenizer or does not fit the model."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise ExportFolderError(f"{path} is not a readable tokenizer: {error}") from error
        # A file may ask for either, and the user's text would be cut or padded without a word.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if size > model.vocab_size:
            raise ExportFolderError(f"{path} has {size} tokens, but the model's vocabulary has {model.vocab_size}")
        self._model = model
        self._prompt = prompt
        self._control_ids = self._find_control_ids()

    def _find_control_ids(self) -> frozenset[int]:
        """Ids that steer the model: they come from the prompt template only, never from a user's text."""
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        model = self._model
        named = (model.image_token_id, model.vision_start_token_id, model.vision_end_token_id)
        return frozenset(special | {token_id for token_id in named if token_id is not None})

    def encode_prompt(self, text: str, num_images: int = 0) -> list[int]:
        """Token ids of `user_prefix + images + text + user_suffix`.

        For a text without special tokens these are the ids of the whole string, as in training; a special token
        spelled out in `text` is encoded as the characters it is made of. Raises MoteError where the text cannot be
        encoded, and where images are given to a model without any.
        """
        before = self._prompt.user_prefix + self._image_text() * num_images if num_images else self._prompt.user_prefix
        head = self._encode(before, special=True)
        tail = self._encode(self._prompt.user_suffix, special=True)
        # What stands between the template's special tokens nearest to the text may merge with it, so it is
        # encoded together with the text.
        head_count, text_start = self._after_last_special(head)
        tail_index, text_end = self._before_first_special(tail, len(self._prompt.user_suffix))
        middle = self._encode(before[text_start:] + text + self._prompt.user_suffix[:text_end], special=False)
        if not self._control_ids.isdisjoint(middle.ids):
            raise MoteError("the prompt's text spells a control token which this tokenizer cannot take as plain text")
        ids = [*head.ids[:head_count], *middle.ids, *tail.ids[tail_index:]]
        self._check_pads(ids, num_images)
        return ids

    def _image_text(self) -> str:
        model = self._model
        if self._prompt.image is None or model.image_token_id is None or model.num_image_tokens is None:
            raise ImageError(f"model {model.name!r} is text only; leave the image out")
        pad = self._tokenizer.id_to_token(model.image_token_id)
        if pad is None:
            raise ExportFolderError(f"tokenizer.json has no token for image_token_id {model.image_token_id}")
        return self._prompt.image.replace(IMAGE_PADS, pad * model.num_image_tokens)

    def _check_pads(self, ids: Sequence[int], num_images: int) -> None:
        if self._model.image_token_id is None:
            return
        found, expected = ids.count(self._model.image_token_id), num_images * (self._model.num_image_tokens or 0)
        if found != expected:
            raise ExportFolderError(
                f"tokenizer.json makes {found} image tokens of the prompt template; expected {expected}, export anew"
            )

    def _encode(self, text: str, *, special: bool) -> Encoding:
        self._tokenizer.encode_special_tokens = not special
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except (UnicodeError, TypeError) as error:  # lone surrogates, e.g. from an argument that is not UTF-8
            raise MoteError("the prompt holds characters that are not valid Unicode; pass it as UTF-8") from error

    def _after_last_special(self, encoding: Encoding) -> tuple[int, int]:
        """How many tokens end with the last special one, and where in the string the rest starts."""
        for index in range(len(encoding.ids) - 1, -1, -1):
            if encoding.ids[index] in self._control_ids:
                return index + 1, encoding.offsets[index][1]
        return 0, 0

    def _before_first_special(self, encoding: Encoding, length: int) -> tuple[int, int]:
        """The index of the first special token, and where it starts in the string of `length` characters."""
        for index, token_id in enumerate(encoding.ids):
            if token_id in self._control_ids:
                return index, encoding.offsets[index][0]
        return len(encoding.ids), length

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> "StreamingDecoder":
        """A decoder for one answer, token by token."""
        return StreamingDecoder(self)


class StreamingDecoder:
    """Decodes an answer token by token; the pieces put together are `decode` of all of its ids.

    A character may be spread over tokens, so text that ends in an incomplete one is held back. The tokens of the
    piece before are decoded again with each new one, as some decoders treat the first token of a text differently.
    """

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._context + self._pending)
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._context_text):
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """What is still held back at the end of the answer, with U+FFFD for a character never completed."""
        return self._emit(self._tokenizer.decode(self._context + self._pending))

    def _emit(self, text: str) -> str:
        piece = text[len(self._context_text) :]
        self._context, self._pending = self._pending, []
        self._context_text = self._tokenizer.decode(self._context)
        return piece
