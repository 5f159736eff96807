"""What a training run is told, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mote_runtime.errors import MoteError

Precision = Literal["float32", "bf16"]
Device = Literal["auto", "cpu"]
MAX_SEED = (1 << 32) - 1  # of NumPy


class TrainingError(MoteError):
    """A run that cannot start or go on; the message is one sentence for the user."""


@dataclass(frozen=True)
class FitSettings:
    """Length, step size and precision of one run.

    Attributes:
        batch_size: rows of the data set that a process takes at once.
        learning_rate: the highest; it rises over `warmup_ratio` of the steps and falls along a cosine to 0.
        steps: optimizer steps; None: `epochs` passes over the data.
        epochs: used where `steps` is None.
        gradient_accumulation: batches of a process that make one step.
        warmup_ratio: share of the steps, 0 to 1.
        weight_decay: of AdamW.
        adam_beta2: of AdamW; shorter memory (0.95 to 0.98) suits short runs.
        max_grad_norm: gradients are scaled down to this norm.
        aux_loss_coef: weight of the load-balancing loss; None: as the model's configuration says.
        precision: "bf16" is autocast, the parameters keep their dtype.
        gradient_checkpointing: computes activations again in the backward pass instead of keeping them.
        compile: torch.compile; only on a GPU.
        fsdp: parameters and optimizer are sharded over the processes (FSDP), a decoder layer at a time.
        device: "auto" takes a GPU where there is one.
        workers: processes that load data.
        seed: of the order of the data, and of whatever else is random in the run.
        logging_steps: steps between two entries of the log; None: a tenth of the run.
        save_steps: steps between two checkpoints, where the run has a folder; None: a tenth of the run.
        keep_checkpoints: how many of the newest stay.
    """

    batch_size: int
    learning_rate: float
    steps: int | None = None
    epochs: float = 1.0
    gradient_accumulation: int = 1
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    aux_loss_coef: float | None = None
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False
    device: Device = "auto"
    workers: int = 0
    seed: int = 0
    logging_steps: int | None = None
    save_steps: int | None = None
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation", "keep_checkpoints"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "logging_steps", "save_steps"):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "epochs", "max_grad_norm"):
            self._check(name, math.isfinite(getattr(self, name)) and getattr(self, name) > 0, "a positive number")
        self._check("weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "at least 0")
        self._check("workers", self.workers >= 0, "at least 0")
        self._check("seed", 0 <= self.seed <= MAX_SEED, f"0 to {MAX_SEED}")
        self._check("warmup_ratio", 0 <= self.warmup_ratio <= 1, "0 to 1")
        self._check("adam_beta2", 0 <= self.adam_beta2 < 1, "at least 0 and less than 1")
        coefficient = self.aux_loss_coef
        self._check(
            "aux_loss_coef", coefficient is None or (math.isfinite(coefficient) and coefficient >= 0), "at least 0"
        )
        for name, allowed in (("precision", get_args(Precision)), ("device", get_args(Device))):
            self._check(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")

    def _check(self, name: str, is_good: bool, expected: str) -> None:
        if not is_good:
            raise TrainingError(f"{name} is {getattr(self, name)!r}, expected {expected}.")
