"""transformers' Trainer with checkpoints that are complete or not there, exact resumption, a guard against NaN, and mote's log."""

from __future__ import annotations

import json
import logging
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from transformers import Trainer, TrainerState

from mote_export.model import MoteLayer
from mote_export.train.run_folder import RunFolder
from mote_export.train.settings import TrainingError
from mote_export.train.statistics import TernaryStatistics, load_statistics

WEIGHTS, STATE, CODES = "trained.safetensors", "mote.json", "codes.safetensors"

log = logging.getLogger(__name__)


class MoteTrainer(Trainer):
    """Args beside Trainer's: run: where checkpoints go, None for nowhere. stop: asked after every step whether to end early."""

    def __init__(self, *args: Any, run: RunFolder | None = None, stop: Callable[[], bool] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.run, self.stop, self.was_stopped = run, stop, False
        self._mote_layers = [module for module in self.model.modules() if isinstance(module, MoteLayer)]
        # A shard says nothing of a matrix: no statistics of weights under FSDP.
        self._ternary = TernaryStatistics([] if self.is_fsdp_enabled else self._mote_layers)
        self._batch_sums: list[Tensor] = []  # [loss, balancing loss] of each batch of the step that is under way
        self._counts: Tensor | None = None  # selections [layers, experts] of this process since the last log
        self._sums = {"loss": 0.0, "aux_loss": 0.0, "steps": 0.0}  # since the last log

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        auxiliary = [layer.aux_loss.detach() for layer in self._mote_layers if layer.aux_loss is not None]
        mean = torch.stack(auxiliary).mean() if auxiliary else loss.new_zeros(())
        self._batch_sums.append(torch.stack([loss.double(), mean.double()]))
        counted = [layer.expert_counts for layer in self._mote_layers if layer.expert_counts is not None]
        if counted and len({len(counts) for counts in counted}) == 1:
            counts = torch.stack(counted)
            self._counts = counts if self._counts is None else self._counts + counts
        return loss

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Called after every step, and once more after an epoch."""
        if self._batch_sums:
            self._finish_step(None if grad_norm is None else float(grad_norm))
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _finish_step(self, grad_norm: float | None) -> None:
        batches = torch.stack(self._batch_sums)
        self._batch_sums = []
        wants_stop = float(self.stop is not None and self.stop())
        step = torch.cat([batches[:, 0].sum()[None], batches[:, 1].mean()[None], batches.new_tensor([wants_stop])])
        loss, auxiliary, stops = (self._over_processes(step) / self.args.world_size).tolist()
        if not math.isfinite(loss) or (grad_norm is not None and not math.isfinite(grad_norm)):
            self._give_up("loss" if not math.isfinite(loss) else "gradient")
        self._sums = {
            "loss": self._sums["loss"] + loss,
            "aux_loss": self._sums["aux_loss"] + auxiliary,
            "steps": self._sums["steps"] + 1,
        }
        if stops > 0 and self.state.global_step < self.state.max_steps:
            self.was_stopped = self.control.should_training_stop = True
            self.control.should_save = self.run is not None

    def _give_up(self, what: str) -> None:
        last = None if self.run is None else self.run.last_checkpoint()
        kept = f"the checkpoint {last} is kept" if last else "there is no checkpoint yet"
        raise TrainingError(
            f"the {what} of step {self.state.global_step} is not finite; {kept}: try a smaller learning_rate, a longer "
            "warm-up or precision float32."
        )

    def _over_processes(self, values: Tensor) -> Tensor:
        """Their sum over processes."""
        if self.args.world_size > 1:
            distributed.all_reduce(values)
        return values

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        if "loss" in logs and self._sums["steps"]:
            # Trainer's own loss is rounded, and a mean since the last resumption.
            logs["loss"] = self._sums["loss"] / self._sums["steps"]
            if self._counts is not None:
                logs["aux_loss"] = self._sums["aux_loss"] / self._sums["steps"]
                logs |= load_statistics(self._over_processes(self._counts.clone()))
            logs |= self._ternary.take()
            self._sums, self._counts = {"loss": 0.0, "aux_loss": 0.0, "steps": 0.0}, None
        super().log(logs, start_time)

    # Checkpoints.

    def _get_output_dir(self, trial: Any) -> str:
        return self.args.output_dir if self.run is None else str(self.run.saving)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run, step = self.run, self.state.global_step
        if run is None or run.checkpoint(step).exists():
            return
        counts = None if self._counts is None else self._over_processes(self._counts.clone())
        try:
            if self.args.should_save:
                shutil.rmtree(run.saving, ignore_errors=True)
                run.saving.mkdir(parents=True)
            self.wait()
            super()._save_checkpoint(model, trial)
            written = run.saving / f"checkpoint-{step}"
            if self.args.should_save:
                self._save_sums(written, counts)
            self.wait()
            if self.args.should_save:
                run.put_in_place(written, step)
            self.wait()
        except (OSError, SafetensorError, RuntimeError) as error:
            self._explain(error)
            raise

    def _explain(self, error: Exception) -> None:
        """torch and safetensors report a full disk in exceptions of their own."""
        if isinstance(error, RuntimeError) and not any(
            hint in str(error) for hint in ("write", "Write", "inline_container")
        ):
            return
        assert self.run is not None
        shutil.rmtree(self.run.saving, ignore_errors=True)
        last = self.run.last_checkpoint()
        kept = f"{last} stays" if last else "there is none yet"
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
        raise TrainingError(f"a checkpoint cannot be written to {self.run.checkpoints}: {reason}; {kept}.") from error

    def wait(self) -> None:
        """For the other processes."""
        if self.args.world_size > 1:
            distributed.barrier()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """What training changes, under the model's own names; LLaVA's `save_pretrained` would rename and not be read back."""
        assert output_dir is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not self.is_fsdp_enabled:  # accelerate writes it then
            save_file({name: tensor.detach().contiguous().cpu() for name, tensor in self._changing()}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        try:
            saved = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{resume_from_checkpoint} cannot be read: {error}.") from error
        changing = dict(self._changing())
        if saved.keys() != changing.keys():
            raise TrainingError(f"{resume_from_checkpoint} holds other parameters than this stage trains.")
        with torch.no_grad():
            for name, tensor in changing.items():
                tensor.copy_(saved[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # Trainer's own asks torch for a device "cpu:0" where there are several processes, which it does not know.
        try:
            for name, part in (("optimizer.pt", self.optimizer), ("scheduler.pt", self.lr_scheduler)):
                part.load_state_dict(torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise TrainingError(f"{checkpoint} cannot be read: {error}.") from error

    def _changing(self) -> list[tuple[str, Tensor]]:
        parameters = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        persistent = self.model.state_dict().keys()
        return [*parameters, *((name, b) for name, b in self.model.named_buffers() if name in persistent)]

    def _save_sums(self, folder: Path, counts: Tensor | None) -> None:
        content = {"sums": self._sums, "counts": None if counts is None else counts.tolist()}
        (folder / STATE).write_text(json.dumps(content) + "\n", encoding="utf-8")
        if codes := self._ternary.state():
            save_file(codes, folder / CODES)

    def load_finished(self, folder: Path) -> None:
        """The weights and the log of a checkpoint after which no step is left."""
        self._load_from_checkpoint(str(folder))
        try:
            self.state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise TrainingError(f"{folder} cannot be read: {error}.") from error

    def load_sums(self, folder: Path) -> None:
        """Goes on with the sums of a checkpoint, so that the next entry of the log is that of a run without a break."""
        try:
            content = json.loads((folder / STATE).read_text(encoding="utf-8"))
            self._sums = {name: float(content["sums"][name]) for name in self._sums}
            if content["counts"] is not None:
                counts = torch.tensor(content["counts"], device=self.args.device)
                self._counts = counts if self.args.process_index == 0 else torch.zeros_like(counts)
            if (folder / CODES).exists():
                self._ternary.load_state(load_file(folder / CODES))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, RecursionError) as error:
            raise TrainingError(f"{folder} cannot be read: {error}.") from error
