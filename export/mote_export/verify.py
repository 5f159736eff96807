"""Compares an exported folder, run by its own runtime, with the torch model on real inputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mote_export.model import MoteForConditionalGeneration
from mote_runtime.arrays import FloatArray, IntArray
from mote_runtime.backends import Backend, open_backend
from mote_runtime.errors import MoteError
from mote_runtime.manifest import Manifest
from mote_runtime.preprocess import ImageSource, preprocess_image
from mote_runtime.tokenizer import PromptTokenizer

STEPS = 16  # greedy tokens compared for each sample


class VerificationError(MoteError):
    """The runtime's answers differ from torch's beyond the tolerance."""


@dataclass(frozen=True)
class Sample:
    """A question, with or without a picture."""

    prompt: str
    image: ImageSource | None = None


@dataclass(frozen=True)
class Verification:
    """What was compared and what was found; goes into `mote.json`."""

    atol: float
    max_abs_logit_difference: float
    max_abs_logit: float
    samples: int
    greedy_tokens_compared: int
    greedy_ties: int


def default_samples() -> list[Sample]:
    """A drawing, noise and a text without a picture, for a checkpoint of which nothing more is known."""
    drawing = Image.new("RGB", (320, 240), "white")
    pen = ImageDraw.Draw(drawing)
    pen.ellipse((40, 30, 180, 200), fill="orange", outline="black", width=6)
    pen.rectangle((170, 90, 300, 220), fill="navy")
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    return [
        Sample("What is in the picture?", drawing),
        Sample("Describe the colors of this image in a few words.", noise),
        Sample("How many are there?"),
    ]


def verify_folder(
    folder: Path, reference: MoteForConditionalGeneration, samples: Sequence[Sample], atol: float
) -> Verification:
    """Loads `folder` in its runtime and compares logits and greedy tokens, step by step along torch's greedy answer.

    Args:
        reference: the model after the pack-ternary-experts pass, in eval mode: the packed weights, evaluated by torch.
        atol: greatest absolute difference of a logit.

    Raises:
        VerificationError: a logit differs by more than `atol`, or a greedy token differs where torch's two best logits are
            further apart than twice `atol`.
    """
    manifest = Manifest.read(folder)
    manifest.verify()
    tokenizer = PromptTokenizer(manifest.path("tokenizer.json"), manifest.model, manifest.prompt)
    backend = open_backend(manifest)
    difference = largest = 0.0
    compared = ties = 0
    try:
        for sample in samples:
            images = _pixel_values(manifest, sample)
            ids = np.array(tokenizer.encode_prompt(sample.prompt, num_images=len(images)), dtype=np.int64)
            tokens, expected = reference_greedy(reference, ids, images, STEPS)
            for step, found in enumerate(runtime_logits(backend, ids, images, tokens)):
                gap = float(np.abs(found - expected[step]).max())
                if not gap <= atol:
                    raise VerificationError(
                        f"{manifest.target} differs from torch by {gap:.3g} in a logit (step {step} of {sample.prompt!r}), "
                        f"more than the tolerance of {atol:.3g}: nothing was written; --atol sets the tolerance."
                    )
                difference, largest = max(difference, gap), max(largest, float(np.abs(expected[step]).max()))
                ties += _compare_token(manifest, sample, found, expected[step], atol)
                compared += 1
    finally:
        backend.close()
    return Verification(atol, difference, largest, len(samples), compared, ties)


def _compare_token(manifest: Manifest, sample: Sample, found: FloatArray, expected: FloatArray, atol: float) -> int:
    """0 for the same greedy token, 1 for a tie within the tolerance; raises otherwise."""
    allowed = np.arange(len(expected)) != manifest.model.image_token_id
    found, expected = np.where(allowed, found, -np.inf), np.where(allowed, expected, -np.inf)
    if found.argmax() == expected.argmax():
        return 0
    margin = float(expected.max() - expected[found.argmax()])
    if margin > 2 * atol:
        raise VerificationError(
            f"{manifest.target} chose token {found.argmax()} where torch chose {expected.argmax()} by a margin of "
            f"{margin:.3g} ({sample.prompt!r}): nothing was written."
        )
    return 1


def _pixel_values(manifest: Manifest, sample: Sample) -> FloatArray:
    """float32 [n, 3, height, width] with n = 0 or 1."""
    assert manifest.image is not None  # mote-export writes multimodal folders
    if sample.image is None:
        return np.zeros((0, 3, manifest.image.height, manifest.image.width), np.float32)
    return preprocess_image(sample.image, manifest.image)[np.newaxis]


def reference_greedy(
    model: MoteForConditionalGeneration, ids: IntArray, images: FloatArray, steps: int
) -> tuple[list[int], FloatArray]:
    """transformers' greedy answer to one prompt: the tokens, and the logits [len(tokens), vocab] that chose them."""
    input_ids = torch.from_numpy(ids)[None]
    with torch.no_grad():
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pixel_values=torch.from_numpy(images) if len(images) else None,
            max_new_tokens=steps,
            suppress_tokens=[model.config.image_token_id],  # it stands for a picture's features and has none of its own
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits: Tensor = torch.cat(output.logits)
    return output.sequences[0, len(ids) :].tolist(), logits.float().numpy()


def runtime_logits(backend: Backend, ids: IntArray, images: FloatArray, tokens: Sequence[int]) -> Iterator[FloatArray]:
    """The runtime's logits [vocab] before each of `tokens`, which are fed to it one by one (teacher forcing)."""
    features = backend.encode_image(images) if len(images) else None
    backend.reset()
    yield backend.decode(backend.embed(ids, features))
    for token in tokens[:-1]:
        yield backend.decode(backend.embed(np.array([token], dtype=np.int64)))
