"""`fit`: one run of transformers' Trainer on a model and data in memory."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from mote_export.train.settings import FitSettings

Collator = Callable[[list[Any]], dict[str, Tensor]]
DEFAULT_LOGS = 10  # entries of the log where the settings do not say


def fit(
    model: nn.Module,
    dataset: Dataset[Any],
    collator: Collator,
    settings: FitSettings,
    output: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[dict[str, float]]:
    """Trains the parameters of `model` that require a gradient (see `set_trainable`): AdamW, warm-up, cosine decay.

    Args:
        model: returns {"loss": scalar, ...} for a batch; a transformers model, or a module of one's own.
        dataset: with a length; rows are drawn without replacement, in an order that `settings.seed` decides.
        collator: makes a batch, the keyword arguments of `model`, from a list of rows.
        settings: length, step size, precision.
        output: a folder for logs and checkpoints; None: nothing is written.
        callbacks: transformers' callbacks, besides those of this package.

    Returns:
        The log: a dictionary an entry, with "step", "loss", "grad_norm", "learning_rate" and what callbacks add.
    """
    with contextlib.ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trainer = Trainer(
            model=model,
            args=training_arguments(settings, folder, len(dataset)),  # type: ignore[arg-type]
            train_dataset=dataset,
            data_collator=collator,
            callbacks=list(callbacks),
        )
        _set_aux_coefficient(model, settings.aux_loss_coef)
        if trainer.args.device.type == "cpu":
            # On a CPU the backward pass of torch's flash attention takes two thirds of a small model's step.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        trainer.train()
        # Trainer leaves autocast on the model's forward; what comes next, an evaluation, chooses its own precision.
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return [dict(entry) for entry in trainer.state.log_history]


def training_arguments(settings: FitSettings, folder: Path, rows: int) -> TrainingArguments:
    """`settings` in transformers' words."""
    # TrainingArguments leaves its choice of precision in the environment and would read the last run's back.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    use_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    steps = settings.steps or max(1, round(settings.epochs * rows / settings.batch_size))
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        # Without it the balancing loss, which leaves the layer by a side door, would have no gradient.
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
        use_cpu=use_cpu,
        torch_compile=settings.compile,
        seed=settings.seed,
        dataloader_num_workers=settings.workers,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        logging_steps=settings.logging_steps or max(1, steps // DEFAULT_LOGS),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
    )


def _set_aux_coefficient(model: nn.Module, coefficient: float | None) -> None:
    config = getattr(model, "config", None)
    if coefficient is not None and getattr(config, "moe", None) is not None:
        config.moe = {**config.moe, "router_aux_loss_coef": coefficient}  # type: ignore[union-attr]
