"""Train the demo model from nothing: `make demo-model`, about twenty minutes on two CPU cores.

The paper (arXiv 2506.14435) starts from a pretrained vision tower and a pretrained language model. There are none of
this size, so stage 0 makes them here, on training scenes only; stages I to III are the paper's.

    0a  vision tower alone: which digit, or none, stands at each of the four places
    0b  decoder alone: the same questions about scenes that are described in words
    I   connector only
    II  instruction tuning of the dense model: connector, decoder and vision tower
    III up-cycling to a mixture of ternary experts: routed experts and routers, quantization-aware

Seeded throughout. Two shortened runs on one machine, with the same library versions and thread count, gave the same weights;
another CPU or thread count sums in another order and ends in a slightly different model of about the same accuracy.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2TokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
    set_seed,
)

from batches import (
    EMPTY,
    PlaceCollator,
    QuestionCollator,
    Rows,
    pack,
    place_labels,
    render_scenes,
)
from evaluate import Preprocessor, accuracy_by_kind, answers, router_load
from held_out import DEFAULT_QUESTIONS, held_out_questions
from mote_export.checkpoint.pt import load_model_pt, save_model_pt
from mote_export.model import upcycle
from mote_export.train import FitSettings, fit, set_trainable
from prompts import (
    IM_START,
    IMAGE_PAD,
    MAX_LENGTH,
    NUM_IMAGE_TOKENS,
    PATCH_SIZE,
    describe_in_words,
    format_prompt,
    processor_files,
    train_tokenizer,
)
from questions import ask_some
from scenes import MODEL_SIZE, Scene, make_scene

FOLDER = Path(__file__).parent
SEED = 1
THREADS = 2
TOKENIZER_SCENES = 2_000
VOCAB_MULTIPLE = 16  # the embedding has a few spare rows, so that its size suits vector registers

log = logging.getLogger("digits_vqa")


@dataclass(frozen=True)
class StageSettings:
    """Length and step size of one stage."""

    steps: int
    batch_size: int  # scenes
    learning_rate: float
    bf16: bool = True  # autocast; master weights stay float32


@dataclass(frozen=True)
class Recipe:
    """Everything the run's cost depends on."""

    scenes: int = 40_000
    vision: StageSettings = StageSettings(1_500, 128, 1.5e-3, bf16=False)
    text: StageSettings = StageSettings(1_000, 32, 2e-3)
    connector: StageSettings = StageSettings(150, 32, 2e-3)
    instruction: StageSettings = StageSettings(1_600, 32, 1e-3)
    # Quantization-aware training computes in float32, like the exported operator.
    mote: StageSettings = StageSettings(500, 32, 1e-3, bf16=False)

    def shortened(self, factor: float) -> Recipe:
        """The same recipe with fewer steps, to see that it runs; the model it makes is of no use."""
        stages = ("vision", "text", "connector", "instruction", "mote")
        short = {name: max(2, round(getattr(self, name).steps * factor)) for name in stages}
        changed: dict[str, Any] = {name: replace(getattr(self, name), steps=steps) for name, steps in short.items()}
        return replace(self, scenes=max(512, round(self.scenes * factor)), **changed)


class PlaceClassifier(nn.Module):
    """The vision tower with a throw-away linear head that reads each place from the mean of its image tokens."""

    def __init__(self, vision_tower: SiglipVisionModel, feature_layer: int) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.feature_layer = feature_layer
        self.head = nn.Linear(vision_tower.config.hidden_size, EMPTY + 1)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states[self.feature_layer]
        side = MODEL_SIZE // PATCH_SIZE // 2  # patches along one side of a place
        grid = states.view(len(states), 2, side, 2, side, -1)
        logits = self.head(grid.mean(dim=(2, 4)).flatten(1, 2))  # [batch, 4, EMPTY + 1]
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def make_tokenizer(scenes: list[Scene]) -> Qwen2TokenizerFast:
    """Train the tokenizer on questions and answers about the given scenes."""
    rng = np.random.default_rng(SEED)
    corpus: list[str] = []
    for scene in scenes:
        corpus.append(describe_in_words(scene.digits))
        for asked in ask_some(scene, rng):
            corpus += [format_prompt(asked.question), asked.answer]
    return train_tokenizer(corpus)


def make_model(tokenizer: Qwen2TokenizerFast) -> LlavaForConditionalGeneration:
    """The dense model, with random weights."""
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=MODEL_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=-(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids(IM_START),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_PAD),
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def train_stage(
    name: str, model: nn.Module, settings: StageSettings, collator: Callable[[list[int]], dict[str, Tensor]], rows: int
) -> None:
    """Run one stage: AdamW, warm-up, cosine decay."""
    log.info("%s: %d steps of %d scenes", name, settings.steps, settings.batch_size)
    fit(
        model,
        Rows(rows),
        collator,
        FitSettings(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_ratio=0.05,
            weight_decay=0.05,
            adam_beta2=0.98,
            precision="bf16" if settings.bf16 else "float32",
            device="cpu",
            seed=SEED,
        ),
        progress=True,
    )


def round_to_bf16(model: nn.Module) -> None:
    """Round every parameter to what bfloat16 can hold, and keep computing in float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


class Clock:
    """Seconds of wall-clock time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        log.info("%s took %.1f s", name, self.seconds[name])


def run(recipe: Recipe, output: Path, num_questions: int) -> dict[str, Any]:
    """Train, save to `output`, and measure what was saved. Returns the report."""
    clock = Clock()
    with clock.stage("rendering"):
        pixels = render_scenes("train", recipe.scenes, THREADS)
        scenes = [make_scene("train", index) for index in range(recipe.scenes)]
        tokenizer = make_tokenizer(scenes[:TOKENIZER_SCENES])
    torch.set_num_threads(THREADS)
    set_seed(SEED)
    model = make_model(tokenizer)

    with clock.stage("0a vision tower"):
        classifier = PlaceClassifier(model.model.vision_tower, model.config.vision_feature_layer)
        train_stage("0a", classifier, recipe.vision, PlaceCollator(pixels, place_labels(scenes)), len(scenes))
    with clock.stage("0b decoder"):
        collator = QuestionCollator(pack(scenes, tokenizer, seed=10, in_words=True))
        train_stage("0b", model, recipe.text, collator, len(scenes))
    with clock.stage("I connector"):
        set_trainable(model, "connector")
        collator = QuestionCollator(pack(scenes, tokenizer, seed=11), pixels)
        train_stage("I", model, recipe.connector, collator, len(scenes))
    with clock.stage("II instruction"):
        set_trainable(model, "instruction", train_vision_tower=True)
        collator = QuestionCollator(pack(scenes, tokenizer, seed=12), pixels)
        train_stage("II", model, recipe.instruction, collator, len(scenes))
        round_to_bf16(model)
    with clock.stage("III mote"):
        set_seed(SEED)  # routers start at random
        mote = upcycle(model, num_experts=4, top_k=1)
        set_trainable(mote, "mote")
        collator = QuestionCollator(pack(scenes, tokenizer, seed=13), pixels)
        train_stage("III", mote, recipe.mote, collator, len(scenes))
    with clock.stage("evaluation"), tempfile.TemporaryDirectory() as folder:
        save_model_pt(output, mote.to(torch.bfloat16), processor_files(tokenizer, Path(folder)))
        saved = load_model_pt(output)
        preprocessor = Preprocessor.from_files(dict(saved.files))
        questions = held_out_questions(num_questions)
        dense = accuracy_by_kind(questions, answers(model, preprocessor, questions))
        ternary = accuracy_by_kind(questions, answers(saved.model, preprocessor, questions))
        load = router_load(saved.model, preprocessor, questions)
    return {
        "seed": SEED,
        "seconds": clock.seconds,
        "questions": num_questions,
        "accuracy_dense": dense,
        "accuracy": ternary,
        "router_load": load,
        "parameters": sum(parameter.numel() for parameter in saved.model.parameters()),
        "bytes": output.stat().st_size,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / "model.pt", help="default: %(default)s")
    parser.add_argument("--questions", type=int, default=DEFAULT_QUESTIONS, help="held-out questions to measure with")
    parser.add_argument("--shorten", type=float, default=1.0, metavar="FACTOR", help="run this share of the steps")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    recipe = Recipe() if arguments.shorten == 1.0 else Recipe().shortened(arguments.shorten)
    report = run(recipe, arguments.output, arguments.questions)
    text = json.dumps(report, indent=2) + "\n"
    arguments.output.with_suffix(".report.json").write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
