"""From a folder to answers: loads an export and generates with it."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from mote_runtime.arrays import FloatArray, IntArray
from mote_runtime.backends import RUNTIMES, Backend, import_backend, open_backend
from mote_runtime.errors import ExportFolderError, ImageError, MoteError
from mote_runtime.generation import Answer, Generation, Limits, Timings, TokenLoop, now_ms
from mote_runtime.manifest import MANIFEST_NAME, Manifest, Verification
from mote_runtime.preprocess import ImageSource, preprocess_image
from mote_runtime.sampling import Sampler
from mote_runtime.tokenizer import PromptTokenizer

DEFAULT_MAX_NEW_TOKENS = 128
MAX_THREADS = 1024


def find_export(folder: str | Path, runtime: str | None = None) -> Path:
    """The folder that holds `mote.json`: `folder` itself, or its subfolder for the runtime (`--target all`).

    Without a `runtime` the first one of the registry that was exported is taken. Raises MoteError.
    """
    folder = Path(folder)
    if runtime is not None and runtime not in RUNTIMES:
        raise MoteError(f"runtime {runtime!r} is not known; expected {' or '.join(RUNTIMES)}")
    if (folder / MANIFEST_NAME).exists():
        return folder
    exported = {name: folder / entry.subfolder for name, entry in RUNTIMES.items()}
    exported = {name: path for name, path in exported.items() if (path / MANIFEST_NAME).is_file()}
    if not exported:
        return folder  # reading its manifest will say what is wrong
    if runtime is None:
        return next(iter(exported.values()))
    if runtime not in exported:
        raise ExportFolderError(
            f"{folder} holds an export for {' and '.join(exported)}, none for {runtime}; export it with --target all"
        )
    return exported[runtime]


def load(
    folder: str | Path, runtime: str | None = None, threads: int | None = None, verify: bool | None = None
) -> "Pipeline":
    """Load an exported folder, or the one for `runtime` in a folder of several, ready to answer.

    Packed weights are mapped, not read: the system brings in what an answer touches, and may drop it again.

    Args:
        folder: what `mote-export` wrote.
        runtime: "onnxruntime" or "executorch"; default: the one that was exported for, the first of several.
        threads: number of threads; default: the runtime's own choice.
        verify: True compares the SHA-256 sums of all files with the manifest, which reads them from end to end; False
            compares sizes only; default: sizes, and the sums of files of up to 16 MiB.

    Raises:
        MoteError: anything is not as it must be, in one sentence.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise MoteError(f"threads is {threads}; expected 1 to {MAX_THREADS}")
    manifest = Manifest.read(find_export(folder, runtime))
    if runtime is not None and runtime != manifest.target:
        raise ExportFolderError(
            f"{manifest.folder} was exported for {manifest.target}, not for {runtime}; leave --runtime out, "
            f"or export it for {runtime}"
        )
    import_backend(manifest.target)  # importing Python modules is no part of loading a model
    start = now_ms()
    manifest.verify(Verification.of(verify))
    tokenizer = PromptTokenizer(manifest.path("tokenizer.json"), manifest.model, manifest.prompt)
    backend = open_backend(manifest, threads)
    return Pipeline(manifest, tokenizer, backend, load_start_ms=start)


class Pipeline:
    """A loaded model. One answer at a time: a new generation ends the one before it; not for several threads at once.

    Use it in a `with` statement or call `close`.
    """

    def __init__(
        self, manifest: Manifest, tokenizer: PromptTokenizer, backend: Backend, *, load_start_ms: float
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self._backend: Backend | None = backend
        self._sequence = 0
        self._load_start_ms = load_start_ms
        self._load_end_ms = now_ms()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model and its memory; closing again does nothing."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def generate(
        self,
        image: ImageSource | Sequence[ImageSource] | None,
        prompt: str,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Generation:
        """An iterator over the answer's text, piece by piece, whose `answer()` gives the rest and the timings.

        The prompt is checked and the images are read before it returns; the model first runs for the first piece.

        Args:
            image: a picture (a path, the bytes of a file, a PIL image, or uint8 [height, width, 3]), several, or None.
            prompt: the question, without any template or special tokens.
            max_new_tokens: the answer's greatest length.
            temperature: 0 takes the likeliest token each time.
            top_p: above temperature 0, draw from the likeliest tokens of this total only.
            seed: above temperature 0, repeats a draw.

        Raises:
            MoteError: a prompt longer than the context, an unreadable image, an image for a text-only model.
        """
        timings = self._new_timings()
        sampler = Sampler(temperature, top_p, seed)
        images = _as_list(image)
        prompt_ids = self.tokenizer.encode_prompt(prompt, len(images))
        timings.token_encode_end_ms = now_ms()
        loop = self._token_loop(prompt_ids, self._pixel_values(images), sampler, max_new_tokens, timings)
        return Generation(loop, self.tokenizer.stream(), timings)

    def answer(
        self,
        image: ImageSource | Sequence[ImageSource] | None,
        prompt: str,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Answer:
        """The whole answer at once; arguments and errors as for `generate`."""
        return self.generate(image, prompt, max_new_tokens, temperature, top_p, seed).answer()

    def generate_ids(
        self,
        prompt_ids: Sequence[int],
        pixel_values: FloatArray | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        sampler: Sampler | None = None,
    ) -> list[int]:
        """Ids generated after raw prompt ids, without the end-of-sequence token.

        Args:
            prompt_ids: with n * num_image_tokens image tokens for n images.
            pixel_values: float32 [n, 3, height, width].
            max_new_tokens: the greatest number of ids.
            sampler: default: greedy.

        Raises:
            MoteError: ids or pixels that the model cannot take.
        """
        timings = self._new_timings()
        return list(self._token_loop(prompt_ids, pixel_values, sampler or Sampler(), max_new_tokens, timings))

    def measured_tokens(
        self,
        prompt: str,
        image: ImageSource | Sequence[ImageSource] | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        *,
        stop: bool = True,
    ) -> tuple[TokenLoop, Timings]:
        """The ids of one greedy answer as they are computed, and its timings in the making, for a profiler.

        With `stop` False an end-of-sequence token is taken as any other, so that each answer has the same number of
        steps. Arguments and errors otherwise as for `generate`.
        """
        timings = self._new_timings()
        images = _as_list(image)
        prompt_ids = self.tokenizer.encode_prompt(prompt, len(images))
        timings.token_encode_end_ms = now_ms()
        pixel_values = self._pixel_values(images)
        return self._token_loop(prompt_ids, pixel_values, Sampler(), max_new_tokens, timings, stop=stop), timings

    def step_logits(
        self, prompt_ids: Sequence[int], forced_ids: Sequence[int] = (), pixel_values: FloatArray | None = None
    ) -> FloatArray:
        """Logits of a forced continuation, one decode step for each forced id.

        Args:
            prompt_ids: as in `generate_ids`.
            forced_ids: what follows, whatever the model would choose.
            pixel_values: as in `generate_ids`.

        Returns:
            float32 [len(forced_ids) + 1, vocab]: row 0 follows the prompt, row i the first i of `forced_ids`.

        Raises:
            MoteError: ids or pixels that the model cannot take.
        """
        self._check_prompt(prompt_ids, pixel_values)
        length = len(prompt_ids) + len(forced_ids)
        if length > self.manifest.model.context_length:
            raise MoteError(f"{length} tokens do not fit the context of {self.manifest.model.context_length}")
        self._check_ids(forced_ids)
        if self.manifest.model.image_token_id in forced_ids:
            raise MoteError("the forced ids hold an image token, which belongs into the prompt only")
        sequence = self._begin_sequence()
        rows = [self._prefill(sequence, prompt_ids, pixel_values, self._new_timings())]
        rows += [self._step(sequence, token_id) for token_id in forced_ids]
        return np.stack(rows)

    def _new_timings(self) -> Timings:
        return Timings(self._load_start_ms, self._load_end_ms)

    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise MoteError("the pipeline is closed; load the folder again")
        return self._backend

    def _check_takes_images(self, count: int) -> None:
        if count and self.manifest.image is None:
            raise ImageError(f"model {self.manifest.model.name!r} is text only; leave the image out")

    def _pixel_values(self, images: Sequence[ImageSource]) -> FloatArray | None:
        spec = self.manifest.image
        return np.stack([preprocess_image(image, spec) for image in images]) if images and spec else None

    def _check_prompt(self, prompt_ids: Sequence[int], pixel_values: FloatArray | None) -> None:
        model = self.manifest.model
        if not prompt_ids:
            raise MoteError("the prompt has no tokens; expected at least 1")
        num_images = 0 if pixel_values is None else len(pixel_values)
        self._check_takes_images(num_images)
        if len(prompt_ids) > model.context_length:
            images = f" ({num_images * (model.num_image_tokens or 0)} of them for images)" if num_images else ""
            raise MoteError(
                f"the prompt is {len(prompt_ids)} tokens long{images}, but the model's context holds "
                f"{model.context_length}; shorten the prompt"
            )
        self._check_ids(prompt_ids)
        image = self.manifest.image
        if image is None:
            return
        if pixel_values is not None and pixel_values.shape[1:] != (3, image.height, image.width):
            raise ImageError(
                f"pixel_values has shape {list(pixel_values.shape)}; expected [n, 3, {image.height}, {image.width}]"
            )
        found, expected = list(prompt_ids).count(model.image_token_id or 0), num_images * (model.num_image_tokens or 0)
        if found != expected:
            raise MoteError(f"the prompt has {found} image tokens; expected {expected} for {num_images} images")

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        vocab_size = self.manifest.model.vocab_size
        if bad := [token_id for token_id in token_ids if not 0 <= token_id < vocab_size]:
            raise MoteError(f"token id {bad[0]} is not in the vocabulary of {vocab_size}")

    def _begin_sequence(self) -> int:
        self._open_backend().reset()
        self._sequence += 1
        return self._sequence

    def _sequence_backend(self, sequence: int) -> Backend:
        """The backend, if its cache still holds this sequence."""
        backend = self._open_backend()
        if sequence != self._sequence:
            raise MoteError("this generation was ended by a newer one; load the folder twice to run two at once")
        return backend

    def _token_loop(
        self,
        prompt_ids: Sequence[int],
        pixel_values: FloatArray | None,
        sampler: Sampler,
        max_new_tokens: int,
        timings: Timings,
        *,
        stop: bool = True,
    ) -> TokenLoop:
        if max_new_tokens < 1:
            raise MoteError(f"max_new_tokens is {max_new_tokens}; expected at least 1")
        self._check_prompt(prompt_ids, pixel_values)
        timings.prompt_tokens = len(prompt_ids)
        model = self.manifest.model
        sequence = self._begin_sequence()
        eos_token_ids = frozenset(model.eos_token_ids) if stop else frozenset()
        return TokenLoop(
            lambda: self._prefill(sequence, prompt_ids, pixel_values, timings),
            lambda token_id: self._step(sequence, token_id),
            sampler,
            Limits(eos_token_ids, model.image_token_id, max_new_tokens, model.context_length),
            timings,
        )

    def _prefill(
        self, sequence: int, prompt_ids: Sequence[int], pixel_values: FloatArray | None, timings: Timings
    ) -> FloatArray:
        backend = self._sequence_backend(sequence)
        features = None if pixel_values is None else backend.encode_image(pixel_values)
        timings.image_encode_end_ms = now_ms()
        ids: IntArray = np.array(prompt_ids, np.int64)
        return backend.decode(backend.embed(ids, features))

    def _step(self, sequence: int, token_id: int) -> FloatArray:
        backend = self._sequence_backend(sequence)
        return backend.decode(backend.embed(np.array([token_id], np.int64)))


def _as_list(image: ImageSource | Sequence[ImageSource] | None) -> list[ImageSource]:
    if image is None:
        return []
    if isinstance(image, str | Path | bytes | Image.Image | np.ndarray):
        return [image]
    return list(image)
