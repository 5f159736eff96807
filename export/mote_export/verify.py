"""Compares an exported folder, run by its own runtime, with the torch model on real inputs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mote_export.model import MoteForConditionalGeneration
from mote_runtime.arrays import FloatArray
from mote_runtime.errors import MoteError
from mote_runtime.manifest import Manifest
from mote_runtime.pipeline import Pipeline, load
from mote_runtime.preprocess import ImageSource, preprocess_image

logger = logging.getLogger(__name__)

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
            further apart than twice `atol`, or the comparison tells nothing.
    """
    difference = largest = 0.0
    compared = ties = 0
    with load(folder) as pipeline:
        manifest = pipeline.manifest
        for sample in samples:
            ids, images = _inputs(pipeline, sample)
            room = manifest.model.context_length - len(ids) + 1
            if room < 1:
                logger.warning("%r does not fit the context of %d tokens", sample.prompt, manifest.model.context_length)
                continue
            tokens, expected = reference_greedy(reference, ids, images, min(STEPS, room))
            for step, found in enumerate(pipeline.step_logits(ids, tokens[:-1], images)):
                gap = float(np.abs(found - expected[step]).max())
                if not gap <= atol:
                    raise VerificationError(
                        f"{manifest.target} differs from torch by {gap:.3g} in a logit (step {step} of {sample.prompt!r}), "
                        f"more than the tolerance of {atol:.3g} (--atol)."
                    )
                difference, largest = max(difference, gap), max(largest, float(np.abs(expected[step]).max()))
                ties += _compare_token(manifest, sample, found, expected[step], atol)
                compared += 1
    if compared == ties or largest <= atol:
        raise VerificationError(
            f"{manifest.target}: {compared} tokens were compared, {ties} of them ties, with logits up to {largest:.3g}; a "
            f"tolerance of {atol:.3g} (--atol) tells nothing about this model."
        )
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
            f"{margin:.3g} ({sample.prompt!r})."
        )
    return 1


def _inputs(pipeline: Pipeline, sample: Sample) -> tuple[list[int], FloatArray | None]:
    """Prompt ids, and pixel values float32 [1, 3, height, width] if there is a picture."""
    if sample.image is None:
        return pipeline.tokenizer.encode_prompt(sample.prompt), None
    assert pipeline.manifest.image is not None  # mote-export writes multimodal folders
    pixel_values = preprocess_image(sample.image, pipeline.manifest.image)[np.newaxis]
    return pipeline.tokenizer.encode_prompt(sample.prompt, num_images=1), pixel_values


def reference_greedy(
    model: MoteForConditionalGeneration, ids: Sequence[int], images: FloatArray | None, steps: int
) -> tuple[list[int], FloatArray]:
    """transformers' greedy answer to one prompt: the tokens, and the logits [len(tokens), vocab] that chose them."""
    input_ids = torch.tensor([list(ids)])
    with torch.no_grad():
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pixel_values=None if images is None else torch.from_numpy(images),
            max_new_tokens=steps,
            suppress_tokens=[model.config.image_token_id],  # it stands for a picture's features and has none of its own
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits: Tensor = torch.cat(output.logits)
    return output.sequences[0, len(ids) :].tolist(), logits.float().numpy()
