"""What a runtime must offer to the pipeline, and what the backends share."""

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from mote_runtime.arrays import FloatArray, IntArray
from mote_runtime.errors import BackendError
from mote_runtime.manifest import Manifest

# Positions of a prompt that go through the decoder at once: what an operator holds beside its weights grows with them, and not with
# the prompt. Twice as many are 2 % faster (docs/memory.md).
PREFILL_CHUNK = 512
_MAX_REASON = 400


class Backend(ABC):
    """One loaded model in one runtime, with its KV cache and the position in it.

    A backend is built as `Class(manifest, threads, profile_folder)` with a verified manifest; `threads` None leaves the
    number to the runtime. With a `profile_folder` the runtime's own profiler runs from the start, without one it is
    never switched on. It serves one sequence at a time and is not safe to call from two threads at once. Every method
    raises BackendError where the runtime refuses.
    """

    @abstractmethod
    def __init__(self, manifest: Manifest, threads: int | None, profile_folder: Path | None = None) -> None:
        """Load the model, see the class."""

    @abstractmethod
    def encode_image(self, pixel_values: FloatArray) -> FloatArray:
        """Features float32 [n * num_image_tokens, hidden_size] of `pixel_values` float32 [n, 3, height, width]."""

    @abstractmethod
    def embed(self, input_ids: IntArray, image_features: FloatArray | None = None) -> FloatArray:
        """Embeddings float32 [S, hidden_size] of int64 [S] ids; the image tokens take the rows of `image_features`.

        The caller makes sure that there are as many image tokens as rows.
        """

    @abstractmethod
    def decode(self, inputs_embeds: FloatArray) -> FloatArray:
        """Append float32 [S, hidden_size], S at least 1, to the sequence; logits float32 [vocab] of its last position.

        A long piece goes through the decoder in chunks of at most `PREFILL_CHUNK`, with the memory of one.
        The array returned is the caller's to change. The caller keeps the sequence within the context length.
        """

    @abstractmethod
    def reset(self) -> None:
        """Start a new, empty sequence."""

    @abstractmethod
    def end_profile(self) -> Mapping[str, Path]:
        """End the runtime's own profiler; the files it wrote, all in `profile_folder`, by the part they belong to.

        ONNX Runtime: "vision", "embedding" and "decoder", one JSON file for each session. ExecuTorch: "program", one
        ETDump. Empty where the backend was built without a `profile_folder`. Call it once, before `close`.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the model; nothing else may be called afterwards."""


def chunks(length: int, largest: int) -> Iterator[slice]:
    """Cuts `length` positions into the fewest pieces of at most `largest`, all of them as long as the others, or one less.

    A short last piece would read all weights for a few positions.
    """
    count = -(-length // largest)
    for index in range(count):
        yield slice(length * index // count, length * (index + 1) // count)


def import_runtime(module: str, advice: str) -> ModuleType:
    """Import a runtime's module; raises BackendError with `advice` where it is not installed."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that the module needs
        raise BackendError(f"{module} cannot be imported ({reason(error)}); {advice}") from error


def reason(error: BaseException) -> str:
    """A runtime's message on one line, for use inside a sentence; control characters are dropped."""
    text = re.sub(r"[\s\x00-\x1f\x7f]+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= _MAX_REASON else text[:_MAX_REASON] + "..."
