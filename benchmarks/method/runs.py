"""The runs, from pictures to trained variants; each leaves its result in a folder, and is not done again where that is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, Qwen2TokenizerFast, set_seed

from mote_export.atomic import atomic_path
from mote_export.checkpoint.pt import save_model_pt
from mote_export.model import MoteForConditionalGeneration
from mote_export.train import FitSettings, fit
from prompts import processor_files

from .data import (
    Encoder,
    PlaceCollator,
    QuestionCollator,
    Rows,
    load_scenes,
    make_tokenizer,
)
from .evaluation import accuracy, held_out_questions
from .models import PlaceClassifier, load_weights, make_dense, make_variant, save_weights
from .recipe import BATCH, PICTURES, Recipe, settings
from .storage import stored
from .tasks import BASE_SHARES, TASKS
from .variants import ROWS, VARIANT, Row

BASE_SEED = 0
_DATA_SEEDS = {"base": 10_000, "dense": 20_000, "moe": 30_000}
SHARES = {name: task.share for name, task in TASKS.items()}


@dataclass(frozen=True)
class Folder:
    """Where everything lies."""

    root: Path

    @property
    def train(self) -> Path:
        return self.root / "train.pt"

    @property
    def test(self) -> Path:
        return self.root / "test.pt"

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    def dense(self, seed: int) -> Path:
        return self.root / f"seed{seed}" / "stage2"

    def variant(self, name: str, seed: int) -> Path:
        return self.root / f"seed{seed}" / name


WEIGHTS, RESULT, MODEL, TRAINING = "weights.pt", "result.json", "model.pt", "training"


def is_done(folder: Path) -> bool:
    return (folder / RESULT).exists()


def finish(folder: Path, result: Mapping[str, Any]) -> None:
    """Says that a run is done, last of all; its training checkpoints are no longer needed."""
    with atomic_path(folder / RESULT) as path:
        path.write_text(json.dumps(result, indent=2) + "\n")
    shutil.rmtree(folder / TRAINING, ignore_errors=True)


def start_worker() -> None:
    """A thread each: matrices of this size do not gain from a second one, and runs beside each other do."""
    torch.set_num_threads(1)


def train(
    model: torch.nn.Module, collator: Any, chosen: FitSettings, folder: Path, batch: int = BATCH
) -> list[dict[str, Any]]:
    """One run of `fit`, gone on with where it was cut off; the parameters that train come back in `model`, on the CPU."""
    assert chosen.steps is not None
    log = fit(model, Rows(chosen.steps * batch), collator, chosen, output=folder / TRAINING)
    model.to("cpu")
    return log


def train_base(folder: Folder, recipe: Recipe) -> None:
    """The vision tower and the model that can read and count: what a user would download."""
    tokenizer, scenes = make_tokenizer(), load_scenes(folder.train)
    set_seed(BASE_SEED)
    model = make_dense(tokenizer)
    classifier = PlaceClassifier(model.model.vision_tower)
    vision = folder.base / "vision"
    train(
        classifier,
        PlaceCollator(scenes),
        settings(recipe.vision, recipe.vision_rate, BASE_SEED, PICTURES, 0.05),
        vision,
        PICTURES,
    )
    model.model.vision_tower.requires_grad_(False)
    collator = QuestionCollator(scenes, Encoder(tokenizer), _DATA_SEEDS["base"], BASE_SHARES)
    log = train(model, collator, settings(recipe.base, recipe.base_rate, BASE_SEED, weight_decay=0.05), folder.base)
    save_weights(model, folder.base / WEIGHTS)
    finish(folder.base, {"log": log, "accuracy": evaluate(model, folder, recipe, tokenizer)})


def train_dense(folder: Folder, recipe: Recipe, seed: int) -> None:
    """Stage II: connector and decoder learn all tasks."""
    tokenizer = make_tokenizer()
    model = make_dense(tokenizer)
    load_weights(model, folder.base / WEIGHTS)
    model.model.vision_tower.requires_grad_(False)
    target = folder.dense(seed)
    collator = QuestionCollator(load_scenes(folder.train), Encoder(tokenizer), _DATA_SEEDS["dense"] + seed, SHARES)
    log = train(model, collator, settings(recipe.dense, recipe.dense_rate, seed, weight_decay=0.05), target)
    save_weights(model, target / WEIGHTS)
    finish(target, {"log": log, "accuracy": evaluate(model, folder, recipe, tokenizer)})


def train_variant(folder: Folder, recipe: Recipe, seed: int, name: str) -> None:
    """Stage III of one variant, and its accuracy in each way it is stored. The batches are the same for every variant."""
    tokenizer = make_tokenizer()
    dense = make_dense(tokenizer)
    load_weights(dense, folder.dense(seed) / WEIGHTS)
    set_seed(seed)  # routers, and experts that start at random
    variant = VARIANT[name]
    model = make_variant(dense, variant)
    target = folder.variant(name, seed)
    collator = QuestionCollator(load_scenes(folder.train), Encoder(tokenizer), _DATA_SEEDS["moe"] + seed, SHARES)
    start = evaluate(model, folder, recipe, tokenizer)
    log = train(
        model, collator, settings(round(recipe.moe * variant.length), recipe.moe_rate * variant.rate, seed), target
    )
    model = model.to(torch.bfloat16)
    save(model, target, tokenizer)
    finish(
        target,
        {
            "log": log,
            "start": start,
            "rows": {
                row.name: row_result(model, row, folder, recipe, tokenizer) for row in ROWS if row.variant == name
            },
        },
    )


def save(model: LlavaForConditionalGeneration, target: Path, tokenizer: Qwen2TokenizerFast) -> None:
    """In bfloat16: a MoE as model.pt, which mote-export, mote-eval and mote-report open; the dense model's weights."""
    if isinstance(model, MoteForConditionalGeneration):
        files = processor_files(tokenizer, target)
        save_model_pt(target / MODEL, model, files)
    else:
        save_weights(model, target / WEIGHTS)


def row_result(
    model: LlavaForConditionalGeneration, row: Row, folder: Folder, recipe: Recipe, tokenizer: Qwen2TokenizerFast
) -> list[dict[str, Any]]:
    """Bytes and accuracy of a row, once for every quantizer that applies."""
    return [
        {
            "quantizer": each.quantizer,
            "bytes": each.expert_bytes,
            "accuracy": evaluate(each.model, folder, recipe, tokenizer),
        }
        for each in stored(model, row)
    ]


def evaluate(
    model: LlavaForConditionalGeneration, folder: Folder, recipe: Recipe, tokenizer: Qwen2TokenizerFast
) -> dict[str, float]:
    scenes = load_scenes(folder.test)
    per_task = min(recipe.questions, len(scenes.digits))
    return accuracy(model, scenes, Encoder(tokenizer), held_out_questions(scenes, per_task))
