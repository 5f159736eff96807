"""One answer in the making: the token loop, its text and its timings."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mote_runtime.arrays import FloatArray
from mote_runtime.sampling import Sampler
from mote_runtime.tokenizer import StreamingDecoder

FinishReason = Literal["stop", "length", "context"]

# perf_counter is monotonic but starts anywhere; with this offset its marks are milliseconds since the epoch.
_EPOCH_MS = time.time() * 1e3 - time.perf_counter() * 1e3


def now_ms() -> float:
    """Milliseconds since the epoch, monotonic within the process."""
    return _EPOCH_MS + time.perf_counter() * 1e3


@dataclass(slots=True)
class Timings:
    """When things happened, in milliseconds since the epoch, under the names of ExecuTorch's LLM stats.

    Two are our own, `image_encode_end_ms` and `decode_steps`.

    Attributes:
        token_encode_end_ms: the prompt is token ids.
        image_encode_end_ms: pictures are features; without one, when they would have been.
        prompt_eval_end_ms: the decoder has run over the prompt.
        first_token_ms: the first token is chosen; 0 for an empty answer.
        aggregate_sampling_time_ms: choosing tokens, a duration.
        prompt_tokens: with those of pictures.
        generated_tokens: without the end-of-sequence token.
        decode_steps: the passes after the prompt, which `decode_token_per_sec` counts.
    """

    model_load_start_ms: float
    model_load_end_ms: float
    inference_start_ms: float = field(default_factory=now_ms)
    token_encode_end_ms: float = 0.0
    image_encode_end_ms: float = 0.0
    prompt_eval_end_ms: float = 0.0
    first_token_ms: float = 0.0
    inference_end_ms: float = 0.0
    aggregate_sampling_time_ms: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    decode_steps: int = 0

    def to_dict(self) -> dict[str, float | int]:
        """All marks in ms (to the microsecond), the counts and the two rates in tokens per second."""
        marks = {name: getattr(self, name) for name in self.__dataclass_fields__}
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in marks.items()}
        return {
            **rounded,
            "prefill_token_per_sec": _rate(self.prompt_tokens, self.prompt_eval_end_ms - self.inference_start_ms),
            "decode_token_per_sec": _rate(self.decode_steps, self.inference_end_ms - self.prompt_eval_end_ms),
            "SCALING_FACTOR_UNITS_PER_SECOND": 1000,
        }


def _rate(count: int, milliseconds: float) -> float:
    return round(count * 1e3 / milliseconds, 3) if milliseconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    Attributes:
        text: without special tokens.
        token_ids: without the end-of-sequence token.
        finish_reason: "stop" at an end-of-sequence token, "length" at `max_new_tokens`, "context" when it was full.
        timings: of `Timings.to_dict`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a token loop ends, and the token it never chooses: the place of an image, which no answer can fill."""

    eos_token_ids: frozenset[int]
    image_token_id: int | None
    max_new_tokens: int
    context_length: int


class TokenLoop(Iterator[int]):
    """The ids of one answer: sample, hand out, feed back, until one of the limits is reached."""

    def __init__(
        self,
        prefill: Callable[[], FloatArray],
        step: Callable[[int], FloatArray],
        sampler: Sampler,
        limits: Limits,
        timings: Timings,
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self._prefill = prefill
        self._step = step
        self._sampler = sampler
        self._limits = limits
        self._timings = timings
        self._last: int | None = None

    def __next__(self) -> int:
        if self.finish_reason is not None:
            raise StopIteration
        timings = self._timings
        if timings.generated_tokens == self._limits.max_new_tokens:
            return self._finish("length")
        # The token handed out last is not in the cache yet; it needs a place there.
        if timings.prompt_tokens + timings.generated_tokens > self._limits.context_length:
            return self._finish("context")
        logits = self._next_logits()
        before = now_ms()
        if self._limits.image_token_id is not None:
            logits[self._limits.image_token_id] = -np.inf
        token_id = self._sampler(logits)
        timings.aggregate_sampling_time_ms += now_ms() - before
        if token_id in self._limits.eos_token_ids:
            return self._finish("stop")
        timings.generated_tokens += 1
        if self._last is None:
            timings.first_token_ms = now_ms()
        self._last = token_id
        return token_id

    def _next_logits(self) -> FloatArray:
        if self._last is None:
            logits = self._prefill()
            self._timings.prompt_eval_end_ms = now_ms()
            return logits
        self._timings.decode_steps += 1
        return self._step(self._last)

    def _finish(self, finish_reason: FinishReason) -> int:
        self.finish_reason = finish_reason
        self._timings.inference_end_ms = now_ms()
        raise StopIteration


class Generation(Iterator[str]):
    """Yields an answer's text in pieces as they become certain; `answer` gives the whole of it."""

    def __init__(self, loop: TokenLoop, decoder: StreamingDecoder, timings: Timings) -> None:
        self._loop = loop
        self._decoder = decoder
        self._timings = timings
        self._pieces: list[str] = []
        self._token_ids: list[int] = []

    def __next__(self) -> str:
        for token_id in self._loop:
            self._token_ids.append(token_id)
            if piece := self._decoder.push(token_id):
                self._pieces.append(piece)
                return piece
        if piece := self._decoder.flush():
            self._pieces.append(piece)
            return piece
        raise StopIteration

    def answer(self) -> Answer:
        """Generate what is left and return the whole answer, also what was handed out before."""
        for _ in self:
            pass
        finish_reason = self._loop.finish_reason
        assert finish_reason is not None, "an exhausted loop has a reason"
        return Answer("".join(self._pieces), tuple(self._token_ids), finish_reason, self._timings.to_dict())
