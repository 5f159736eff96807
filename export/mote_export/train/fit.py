"""`fit`: one run of transformers' Trainer on a model and data in memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from mote_export.train.callbacks import Progress, RunLog, TensorBoard
from mote_export.train.run_folder import RunFolder
from mote_export.train.settings import FitSettings, TrainingError
from mote_export.train.trainer import MoteTrainer

Collator = Callable[[list[Any]], dict[str, Tensor]]
DEFAULT_LOGS = 10  # entries of the log where the settings do not say
# What a run may be gone on with differently, as it does not change its numbers.
FREE_SETTINGS = ("logging_steps", "save_steps", "keep_checkpoints", "workers")


class TrainingStopped(Exception):  # noqa: N818  it is no error
    """`stop` said so. step: the last one done. total: of the run. checkpoint: to go on from, if the run has a folder."""

    def __init__(self, step: int, total: int, checkpoint: Path | None) -> None:
        super().__init__(f"stopped after step {step} of {total}")
        self.step, self.total, self.checkpoint = step, total, checkpoint


def fit(
    model: nn.Module,
    dataset: Dataset[Any],
    collator: Collator,
    settings: FitSettings,
    output: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    identity: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Trains the parameters of `model` that require a gradient (see `set_trainable`): AdamW, warm-up, cosine decay.

    Args:
        model: returns {"loss": scalar, ...} for a batch; a transformers model, or a module of one's own.
        dataset: with a length; rows are drawn without replacement, in an order that `settings.seed` decides.
        collator: makes a batch, the keyword arguments of `model`, from a list of rows.
        settings: length, step size, precision.
        output: a folder for log and checkpoints; with checkpoints of the same run in it, the run goes on from the last. None:
            nothing is written.
        callbacks: transformers' callbacks, besides those of this package.
        identity: what else makes the run's numbers, in JSON's types; checkpoints of a run with another are refused.
        stop: asked after every step; once it is true the run saves a checkpoint and ends. `TrainingStopped` tells of it.
        progress: show a bar.

    Returns:
        The log: a dictionary an entry, with "step", "loss" (a mean since the last entry), "grad_norm", "learning_rate", for MoTE
        layers "aux_loss", "router_load" (a list of experts for each layer), "dead_experts" and "ternary", and what callbacks add.

    Raises:
        TrainingError: settings do not fit this machine, the folder holds another run, the loss is not finite, or the disk is full.
        TrainingStopped: see `stop`.
    """
    with contextlib.ExitStack() as stack:
        trainer = make_trainer(model, dataset, collator, settings, output, callbacks, stack, stop, progress)
        run_trainer(trainer, settings, identity, stack)
        # Trainer leaves autocast on the model's forward; what comes next, an evaluation, chooses its own precision.
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return [dict(entry) for entry in trainer.state.log_history if "loss" in entry]  # Trainer's last one sums up the run


def make_trainer(
    model: nn.Module,
    dataset: Dataset[Any],
    collator: Collator,
    settings: FitSettings,
    output: Path | None,
    callbacks: Sequence[TrainerCallback],
    stack: contextlib.ExitStack,
    stop: Callable[[], bool] | None = None,
    progress: bool = False,
) -> MoteTrainer:
    """A trainer that is ready to run; temporary files go with `stack`. Arguments and errors as in `fit`."""
    run = None if output is None else RunFolder(output, settings.keep_checkpoints)
    folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    _set_aux_coefficient(model, settings.aux_loss_coef)
    arguments = training_arguments(model, settings, folder, len(dataset), saves=run is not None)  # type: ignore[arg-type]
    own: list[TrainerCallback] = [] if run is None else [RunLog(run), TensorBoard(run)]
    trainer = MoteTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collator,
        callbacks=[*own, *([Progress()] if progress else []), *callbacks],
        run=run,
        stop=stop,
    )
    trainer.remove_callback(PrinterCallback)
    if hasattr(model, "balances_across_processes"):
        model.balances_across_processes = arguments.world_size > 1
    return trainer


def run_trainer(
    trainer: MoteTrainer, settings: FitSettings, identity: Mapping[str, Any] | None, stack: contextlib.ExitStack
) -> None:
    """Starts, or goes on from the last checkpoint. Errors as in `fit`."""
    checkpoint = None
    total = total_steps(settings, len(trainer.train_dataset))
    if trainer.run is not None:
        whole = run_identity(trainer.model, settings, identity, trainer.args.world_size, len(trainer.train_dataset))
        trainer.run.check(whole)
        # Shards are put together by training only, so under FSDP a finished run does its last part again.
        checkpoint = trainer.run.last_checkpoint(before=total if trainer.is_fsdp_enabled else None)
        step = trainer.run.step_of(checkpoint)
        trainer.wait()  # all have looked at the folder before one writes to it
        if trainer.args.should_save:
            trainer.run.begin(whole, step)
        if checkpoint is not None and step >= total:
            # Trainer would do a step more.
            trainer.load_finished(checkpoint)
            return
        if checkpoint is not None:
            trainer.load_sums(checkpoint)
    if trainer.args.device.type == "cpu":
        # On a CPU the backward pass of torch's flash attention takes two thirds of a small model's step.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.was_stopped:
        last = None if trainer.run is None else trainer.run.last_checkpoint()
        raise TrainingStopped(trainer.state.global_step, trainer.state.max_steps, last)


def run_identity(
    model: nn.Module, settings: FitSettings, extra: Mapping[str, Any] | None, processes: int, rows: int
) -> dict[str, Any]:
    """All that the numbers of a run depend on, with its own sum over the weights that stay as they are."""
    values = {name: value for name, value in asdict(settings).items() if name not in FREE_SETTINGS}
    return {**(extra or {}), **values, "processes": processes, "rows": rows, "frozen": frozen_sum(model)}


def frozen_sum(model: nn.Module) -> str:
    """A hash of the frozen parameters' names and of the sums of their bytes, which no order of adding changes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype} {parameter.requires_grad}".encode())
        if not parameter.requires_grad and not parameter.is_meta:
            bits = parameter.detach().reshape(-1).view(torch.uint8)
            digest.update(str(bits.sum(dtype=torch.int64).item()).encode())
    return digest.hexdigest()


def training_arguments(
    model: nn.Module, settings: FitSettings, folder: Path, rows: int, *, saves: bool = False
) -> TrainingArguments:
    """`settings` in transformers' words. Raises TrainingError where they do not fit this machine or the data."""
    # TrainingArguments leaves its choice of precision in the environment and would read the last run's back.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    use_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if settings.compile and use_cpu:
        raise TrainingError("compile is true, but there is no GPU to compile for: set it to false.")
    if rows < settings.batch_size * num_processes():
        raise TrainingError(
            f"the data has {rows} rows, fewer than a batch of {settings.batch_size} for each of {num_processes()} processes: "
            "lower batch_size."
        )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps or -1,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        # With re-entrance the balancing loss, which leaves the layer by a side door, would have no gradient.
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
        # Batches without a picture do not reach the connector.
        ddp_find_unused_parameters=True,
        ddp_backend="gloo" if use_cpu and num_processes() > 1 else None,
        seed=settings.seed,
        dataloader_num_workers=settings.workers,
        dataloader_drop_last=True,
        dataloader_pin_memory=not use_cpu,
        remove_unused_columns=False,
        save_strategy="steps" if saves else "no",
        save_steps=settings.save_steps or max(1, total_steps(settings, rows) // DEFAULT_LOGS),
        report_to=[],
        logging_steps=settings.logging_steps or max(1, total_steps(settings, rows) // DEFAULT_LOGS),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        **_fsdp_arguments(model, settings),
    )
    if arguments.n_gpu > 1:  # Trainer would put DataParallel around the model, of whose copies nothing is counted
        raise TrainingError(
            f"a process sees {arguments.n_gpu} GPUs, expected one: start a process for each with torchrun, or set "
            "CUDA_VISIBLE_DEVICES."
        )
    return arguments


def num_processes() -> int:
    """As torchrun and accelerate launch say."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def total_steps(settings: FitSettings, rows: int) -> int:
    """Optimizer steps of a run."""
    batches = rows // (settings.batch_size * num_processes())
    per_epoch = max(1, -(-batches // settings.gradient_accumulation))
    return settings.steps or max(1, -int(-settings.epochs * per_epoch // 1))


def _fsdp_arguments(model: nn.Module, settings: FitSettings) -> dict[str, Any]:
    if not settings.fsdp:
        return {}
    layers: Any = model.get_decoder().layers  # type: ignore[operator]
    return {
        "fsdp": "full_shard auto_wrap",
        "fsdp_config": {
            "transformer_layer_cls_to_wrap": [type(layers[0]).__name__],
            "state_dict_type": "FULL_STATE_DICT",
            # Every process has read the same weights.
            "sync_module_states": False,
            "cpu_ram_efficient_loading": False,
        },
    }


def _set_aux_coefficient(model: nn.Module, coefficient: float | None) -> None:
    config: Any = getattr(model, "config", None)
    if coefficient is not None and getattr(config, "moe", None) is not None:
        config.moe = {**config.moe, "router_aux_loss_coef": coefficient}
