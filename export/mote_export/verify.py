"""Compares an exported folder, run by its own runtime, with the torch model on real inputs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from mote_export.kv_cache import rounded_cache
from mote_export.model import MoteForConditionalGeneration, MoteModel
from mote_export.packing import SHARED_FORMATS
from mote_export.passes.pack_linear import PackedLinear
from mote_export.passes.quantize_linear import QuantizedLinear
from mote_runtime.arrays import FloatArray
from mote_runtime.errors import MoteError
from mote_runtime.manifest import Manifest
from mote_runtime.pipeline import load
from mote_runtime.preprocess import ImageSource, preprocess_image
from mote_runtime.tokenizer import PromptTokenizer

logger = logging.getLogger(__name__)

STEPS = 16  # greedy tokens compared for each sample
NUDGES, NUDGE = 4, 1e-5  # of own_differences
# How far they may widen the tolerance of a step: to twice themselves, and to five times itself.
OWN_FACTOR, MOST_WIDENED = 2.0, 5.0


class VerificationError(MoteError):
    """The runtime's answers differ from torch's beyond the tolerance."""


@dataclass(frozen=True)
class Sample:
    """A question, with or without a picture.

    Attributes:
        prompt: without any template or special tokens.
        image: a path, the bytes of a file, a PIL image, or uint8 [height, width, 3].
    """

    prompt: str
    image: ImageSource | None = None


@dataclass(frozen=True)
class Verification:
    """What was compared and what was found; goes into `mote.json`.

    Attributes:
        rtol: the tolerance, see `relative_difference`.
        max_relative_difference: the greatest one of a step.
        max_abs_logit_difference, max_abs_logit: over all logits of all steps.
        samples: questions that were asked.
        greedy_tokens_compared: steps of all of them together.
        greedy_ties: steps at which the runtime's best token was another, as good within the tolerance.
        widened_steps: steps beyond `rtol` that `own_differences` explain.
    """

    rtol: float
    max_relative_difference: float
    max_abs_logit_difference: float
    max_abs_logit: float
    samples: int
    greedy_tokens_compared: int
    greedy_ties: int
    widened_steps: int = 0


def relative_difference(found: FloatArray, expected: FloatArray) -> float:
    """Root mean square difference of two rows of logits [vocab], in units of the standard deviation of `expected`.

    Not the greatest absolute difference: sums that run in another order differ by 1e-6 in these units, but that is enough to carry
    an int8 activation of an expert over a rounding boundary now and then, which moves all logits by about 2e-3 (measured on
    two layers of 1.5B shape). The greatest of 150,000 such moves is several times their size; their root mean square is not.
    """
    spread = float(expected.std())
    difference = float(np.sqrt(np.mean(np.square(found - expected), dtype=np.float64)))
    return difference / spread if spread > 0 else np.inf


def default_samples(has_vision: bool = True) -> list[Sample]:
    """A drawing, noise and a text without a picture, or three texts, for a checkpoint of which nothing more is known."""
    if not has_vision:
        return [
            Sample("How many are there?"),
            Sample("Describe the colors of the sky in a few words."),
            Sample("1 2 3"),
        ]
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


def verify_folder(folder: Path, reference: MoteModel, samples: Sequence[Sample], rtol: float) -> Verification:
    """Loads `folder` in its runtime and compares logits and greedy tokens, step by step along the runtime's greedy answer.

    torch computes all steps of an answer at once, so that a model of any size passes through it once for each sample.

    Args:
        reference: the model after the pack-ternary-experts pass, in eval mode: the packed weights, evaluated by torch.
        rtol: greatest `relative_difference` of a step; where linear layers or the KV cache round activations, twice
            `own_differences` if that is more, up to five times `rtol`.

    Raises:
        VerificationError: a step differs by more than `rtol`, or in its greedy token although that is no tie within the
            tolerance, or the comparison tells nothing.
    """
    worst = difference = largest = 0.0
    compared = ties = widened = 0
    with load(folder) as pipeline:
        manifest = pipeline.manifest
        for sample in samples:
            ids, images = prompt_inputs(pipeline.tokenizer, manifest, sample)
            room = manifest.model.context_length - len(ids) + 1
            if room < 1:
                logger.warning("%r does not fit the context of %d tokens", sample.prompt, manifest.model.context_length)
                continue
            steps = min(STEPS, room)
            answer = pipeline.generate_ids(ids, images, max_new_tokens=steps)[: steps - 1]  # it may have ended before
            logits = reference_logits(reference, ids, answer, images)
            own: FloatArray | None = None
            for step, found in enumerate(pipeline.step_logits(ids, answer, images)):
                expected, limit = logits[step], rtol
                relative = relative_difference(found, expected)
                if not relative <= rtol and rounds_activations(reference):
                    own = own_differences(reference, ids, images, answer, logits) if own is None else own
                    limit = widened_tolerance(rtol, float(own[step]))
                    widened += 1
                if not relative <= limit:
                    beside = f" {rtol:g}, widened for rounded activations" if limit > rtol else ""
                    raise VerificationError(
                        f"{manifest.target} differs from torch by {relative:.2g} of the logits' standard deviation (step {step} "
                        f"of {sample.prompt!r}), more than the tolerance of {limit:.2g} (--rtol{beside})."
                    )
                worst = max(worst, relative)
                difference = max(difference, float(np.abs(found - expected).max()))
                largest = max(largest, float(np.abs(expected).max()))
                ties += _compare_token(manifest, sample, found, expected, limit)
                compared += 1
    if compared == ties:
        raise VerificationError(
            f"{manifest.target}: {compared} greedy tokens were compared, {ties} of them ties; this tells nothing about the model."
        )
    return Verification(rtol, worst, difference, largest, len(samples), compared, ties, widened)


def widened_tolerance(rtol: float, own: float) -> float:
    """Of a step at which torch's own logits move by `own`; bounded, so that rounding never excuses any difference at all."""
    return min(max(rtol, OWN_FACTOR * own), MOST_WIDENED * rtol)


def rounds_activations(reference: MoteModel) -> bool:
    """Whether integers are made of activations outside of the mixtures: of inputs of linear layers, or of keys and values."""
    return rounded_cache(reference) is not None or any(
        (isinstance(module, QuantizedLinear) and module.activations != "float32")
        or (isinstance(module, PackedLinear) and SHARED_FORMATS[module.format.name].bits is not None)
        for module in reference.modules()
    )


def own_differences(
    reference: MoteModel, ids: Sequence[int], images: FloatArray | None, answer: Sequence[int], logits: FloatArray
) -> FloatArray:
    """By how much torch's own logits move, as `relative_difference` [steps], when embeddings change by a hundred-thousandth.

    Rounded activations are what moves: one that lies between two codes falls to either side, all that follows is another value, and
    more of them fall to the other side there. With several rounded layers in a row that can be more than the tolerance, although
    no weight is wrong; a runtime, whose sums run in another order, is as free to move as torch is.
    """
    generator = torch.Generator().manual_seed(0)

    def nudge(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_states, *rest = arguments
        noise = torch.randn(hidden_states.shape, generator=generator)
        return (hidden_states * (1.0 + NUDGE * noise), *rest)

    hook = reference.get_decoder().layers[0].register_forward_pre_hook(nudge)
    try:
        runs = [reference_logits(reference, ids, answer, images) for _ in range(NUDGES)]
    finally:
        hook.remove()
    moved = [[relative_difference(*pair) for pair in zip(run, logits, strict=True)] for run in runs]
    greatest: FloatArray = np.max(np.array(moved, dtype=np.float32), axis=0)
    return greatest


def tie_margin(expected: FloatArray, rtol: float) -> float:
    """Tokens whose logits are no further apart than this are equally good: each may be off by twice the tolerance."""
    return 4.0 * rtol * float(expected.std())


def _compare_token(manifest: Manifest, sample: Sample, found: FloatArray, expected: FloatArray, rtol: float) -> int:
    """0 for the same greedy token, 1 for a tie within the tolerance; raises otherwise."""
    image = manifest.model.image_token_id
    allowed = np.arange(len(expected)) != (-1 if image is None else image)
    best, wanted = (int(np.where(allowed, row, -np.inf).argmax()) for row in (found, expected))
    if best == wanted:
        return 0
    margin = float(expected[wanted] - expected[best])
    if margin > tie_margin(expected, rtol):
        raise VerificationError(
            f"{manifest.target} chose token {best} where torch chose {wanted} by a margin of {margin:.3g} ({sample.prompt!r})."
        )
    return 1


def prompt_inputs(
    tokenizer: PromptTokenizer, manifest: Manifest, sample: Sample
) -> tuple[list[int], FloatArray | None]:
    """Prompt ids, and pixel values float32 [1, 3, height, width] if there is a picture."""
    if sample.image is None:
        return tokenizer.encode_prompt(sample.prompt), None
    assert manifest.image is not None  # mote-export has refused a sample with a picture for a text model
    pixel_values = preprocess_image(sample.image, manifest.image)[np.newaxis]
    return tokenizer.encode_prompt(sample.prompt, num_images=1), pixel_values


def reference_logits(
    model: MoteModel, ids: Sequence[int], answer: Sequence[int], images: FloatArray | None
) -> FloatArray:
    """torch's logits [len(answer) + 1, vocab]: row 0 follows the prompt `ids`, row i the first i tokens of `answer`.

    Keys and values are rounded where the export's cache is in int8.
    """
    pictures = {} if images is None else {"pixel_values": torch.from_numpy(images)}
    with torch.no_grad():
        input_ids = torch.tensor([[*ids, *answer]])
        logits: Tensor = model(
            input_ids=input_ids,
            logits_to_keep=len(answer) + 1,
            use_cache=False,
            past_key_values=rounded_cache(model),
            **pictures,
        ).logits
    return logits[0].float().numpy()


def reference_greedy(
    model: MoteModel, ids: Sequence[int], images: FloatArray | None, steps: int
) -> tuple[list[int], FloatArray]:
    """transformers' greedy answer to one prompt: the tokens, and the logits [len(tokens), vocab] that chose them."""
    input_ids = torch.tensor([list(ids)])
    pictures: dict[str, Any] = {}
    if isinstance(model, MoteForConditionalGeneration):
        pictures["pixel_values"] = None if images is None else torch.from_numpy(images)
        pictures["suppress_tokens"] = [
            model.config.image_token_id
        ]  # it stands for a picture's features, it is no answer
    with torch.no_grad():
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **pictures,
        )
    logits: Tensor = torch.cat(output.logits)
    return output.sequences[0, len(ids) :].tolist(), logits.float().numpy()
