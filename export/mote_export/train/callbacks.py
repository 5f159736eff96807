"""Where a run's log goes: log.jsonl, TensorBoard, and a bar on the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mote_export.train.run_folder import RunFolder

log = logging.getLogger(__name__)


class RunLog(TrainerCallback):
    """A line of log.jsonl an entry."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self._run.write_log({"step": state.global_step, **logs})


class TensorBoard(TrainerCallback):
    """The same entries for TensorBoard; nothing where it is not installed."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._writer: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.warning("no TensorBoard log: tensorboard is not installed (pip install 'mote[train]')")
            return
        # What an earlier start logged behind the checkpoint is hidden.
        self._writer = SummaryWriter(str(self._run.tensorboard), purge_step=state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self._writer is not None and logs and "loss" in logs:
            for name, value in scalars(logs):
                self._writer.add_scalar(name, value, state.global_step)
            self._writer.flush()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._writer is not None:
            self._writer.close()


def scalars(logs: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and numbers of an entry, as TensorBoard groups them."""
    for name, value in logs.items():
        if name == "router_load":
            for layer, shares in enumerate(value):
                for expert, share in enumerate(shares):
                    yield f"router_load/layer_{layer}/expert_{expert}", share
        elif name == "ternary":
            for layer, entry in enumerate(value):
                for kind, number in entry.items():
                    yield f"ternary_{kind}/layer_{layer}", number
        elif isinstance(value, int | float):
            yield f"train/{name}", float(value)


class Progress(TrainerCallback):
    """A bar with the last entry's loss, on the main process."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=None
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        log.info("step %d: loss %.4f", state.global_step, logs["loss"])
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{logs['loss']:.4f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
