"""Watches a backend from outside: when each of its calls began and ended. Only a traced process has one in between."""

import time
from collections.abc import Mapping
from pathlib import Path

from mote_runtime.arrays import FloatArray, IntArray
from mote_runtime.backends import Backend
from mote_runtime.profile.trace.events import Part
from mote_runtime.profile.trace.raw_trace import Call


class ObservedBackend(Backend):
    """Hands every call on to a backend and notes it in `calls`, in order."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.calls: list[Call] = []

    def _note(self, part: Part, begin_ns: int, tokens: int) -> None:
        self.calls.append(Call(part, begin_ns, time.monotonic_ns(), tokens))

    def encode_image(self, pixel_values: FloatArray) -> FloatArray:
        begin = time.monotonic_ns()
        result = self._backend.encode_image(pixel_values)
        self._note(Part.VISION, begin, len(pixel_values))
        return result

    def embed(self, input_ids: IntArray, image_features: FloatArray | None = None) -> FloatArray:
        begin = time.monotonic_ns()
        result = self._backend.embed(input_ids, image_features)
        self._note(Part.EMBEDDING, begin, len(input_ids))
        return result

    def decode(self, inputs_embeds: FloatArray) -> FloatArray:
        begin = time.monotonic_ns()
        result = self._backend.decode(inputs_embeds)
        self._note(Part.DECODER, begin, len(inputs_embeds))
        return result

    def reset(self) -> None:
        self._backend.reset()

    def end_profile(self) -> Mapping[str, Path]:
        return self._backend.end_profile()

    def close(self) -> None:
        self._backend.close()
