"""A recipe's run from its files to the model that it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from mote_export.train.data import ConversationCollator, ConversationData, load_conversations
from mote_export.train.fit import make_trainer, num_processes, run_trainer, total_steps
from mote_export.train.recipe import Recipe
from mote_export.train.run_folder import RunFolder
from mote_export.train.settings import TrainingError
from mote_export.train.source import (
    CONFIG,
    Source,
    chat_format,
    load_source,
    pad_token_id,
    picture_format,
    save_result,
)
from mote_export.train.stages import set_trainable

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# What can differ between two starts of a run.
FREE = ("output", "model", "image_folder", "data", "logging_steps", "save_steps", "keep_checkpoints", "workers")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A run that is ready to start.

    Attributes:
        trainable: names of the parameters that train.
        identity: what the run's numbers depend on, beside `FitSettings`.
    """

    recipe: Recipe
    source: Source
    data: ConversationData
    trainable: list[str]
    identity: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Numbers for people and programs."""
        settings, model = self.recipe.settings(), self.source.model
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        lengths = [len(row.input_ids) for row in self.data.rows]
        return {
            "stage": self.recipe.stage,
            "parameters": total,
            "trainable": trained,
            "rows": len(lengths),
            "pictures": sum(row.image is not None for row in self.data.rows),
            "longest": max(lengths),
            "left_out": dict(self.data.skipped.counts),
            "processes": num_processes(),
            "batch": settings.batch_size * settings.gradient_accumulation * num_processes(),
            "steps": total_steps(settings, len(lengths)),
            "bytes": memory_estimate(model, self.recipe.fsdp),
        }


def memory_estimate(model: nn.Module, fsdp: bool = False) -> dict[str, int]:
    """Bytes that a process keeps of the model all the time; activations, which depend on the batch, come on top."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    share = num_processes() if fsdp else 1
    return {
        "weights": weights // share,
        "gradients": trained // share,
        "optimizer": 2 * trained // share,  # AdamW's two moments
    }


def plan(recipe: Recipe, strict: bool = False) -> Plan:
    """Reads the model and the data. Raises MoteError where either cannot be used."""
    if recipe.output.suffix != ".pt" and (recipe.output / CONFIG).exists():
        raise TrainingError(f"{recipe.output} holds a model already: choose another output.")
    if recipe.output.suffix == ".pt" and recipe.output.exists():
        raise TrainingError(f"{recipe.output} exists already: choose another output.")
    set_seed(recipe.seed)
    source = load_source(recipe.model, recipe.stage)
    try:
        trainable = set_trainable(source.model, recipe.stage, train_vision_tower=recipe.train_vision_tower)
    except ValueError as error:
        raise TrainingError(f"{recipe.model}: {error}.") from error
    data = load_conversations(
        recipe.data,
        chat_format(source),
        max_length=recipe.max_length,
        image_folder=recipe.image_folder,
        spec=picture_format(source),
        turns=recipe.turns,
        strict=strict,
        images_only=recipe.stage == "connector",
    )
    limit = getattr(source.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(row.input_ids) for row in data.rows)
    if isinstance(limit, int) and longest > limit:
        raise TrainingError(
            f"the data has a sequence of {longest} tokens, but the model takes {limit}: lower max_length."
        )
    return Plan(recipe, source, data, trainable, _identity(recipe))


def _identity(recipe: Recipe) -> dict[str, Any]:
    values = {name: value for name, value in asdict(recipe).items() if name not in FREE}
    for name in ("learning_rate", "aux_loss_coef", "steps", "epochs"):
        values.pop(name)  # told by the settings, where defaults are filled in
    return {**values, "data": [_hash(path) for path in recipe.data]}


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror or error}.") from error


def run(plan: Plan, stop: Callable[[], bool] | None = None, progress: bool = True) -> Path:
    """Trains, or goes on from the last checkpoint, and writes the result.

    Returns:
        Where the model is: `recipe.output`.

    Raises:
        TrainingStopped, MoteError: see `fit`. OSError: the result cannot be written.
    """
    recipe, settings = plan.recipe, plan.recipe.settings()
    model: Any = plan.source.model
    with contextlib.ExitStack() as stack:
        collator = ConversationCollator(pad_token_id(plan.source))
        folder = recipe.run_folder
        stack.enter_context(_without_cache(model.config.get_text_config(decoder=True)))
        trainer = make_trainer(model, plan.data, collator, settings, folder, (), stack, stop, progress)
        run_trainer(trainer, settings, plan.identity, stack)
        # accelerate's own configuration may ask for FSDP, too.
        state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
        if state is None:
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if int(os.environ.get("RANK", "0")) == 0:
        source = _with_state(plan, state)
        source.model.cpu().eval()
        save_result(source, recipe.output, folder, DTYPES[recipe.save_dtype])
        RunFolder(folder).remove_checkpoints()
    return recipe.output


@contextlib.contextmanager
def _without_cache(config: Any) -> Iterator[None]:
    """Nothing is generated in training; what was configured is saved with the model."""
    before, config.use_cache = config.use_cache, False
    try:
        yield
    finally:
        config.use_cache = before


def _with_state(plan: Plan, state: dict[str, torch.Tensor] | None) -> Source:
    """The trained model; after FSDP, whose shards took it apart, a new one with the gathered weights."""
    if state is None:
        return plan.source
    source = load_source(plan.recipe.model, plan.recipe.stage)
    model: PreTrainedModel = source.model
    model.load_state_dict(state)
    return source
