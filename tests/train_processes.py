"""A process of a distributed run, for test_train_processes.py: a server imports this once and forks the processes."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from training import Texts, collate_texts, text_model

from mote_export.train import FitSettings, TrainingStopped, set_trainable
from mote_export.train.fit import make_trainer, run_trainer


def train(settings: dict[str, Any], output: Path | None = None, stop_after: int | None = None) -> dict[str, Any]:
    """What a run leaves; with `stop_after` one that was stopped and gone on with."""
    if stop_after is not None:
        with pytest.raises(TrainingStopped, match=f"after step {stop_after}"):
            start(settings, output, Countdown(stop_after))
    log, state, names = start(settings, output, None)
    return {
        "log": [entry for entry in log if "loss" in entry],
        "norms": {name: state[name].norm().item() for name in names if name in state},
    }


class Countdown:
    """True when it was asked for the given time."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __call__(self) -> bool:
        self._left -= 1
        return self._left == 0


def start(
    settings: dict[str, Any], output: Path | None, stop: Countdown | None
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], list[str]]:
    model = text_model()
    set_trainable(model, "mote")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with contextlib.ExitStack() as stack:
        parsed = FitSettings(**{"learning_rate": 0.01, "logging_steps": 1, "device": "cpu", **settings})
        trainer = make_trainer(model, Texts(), collate_texts, parsed, output, (), stack, stop)
        run_trainer(trainer, parsed, None, stack)
        state = trainer.accelerator.get_state_dict(trainer.model)
    return trainer.state.log_history, state, names


def process(rank: int, port: int, output: Path, runs_of: list[dict[str, Any]]) -> None:
    """One of two processes; the first writes what each run leaves."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
    }  # fmt: skip
    torch.set_num_threads(1)
    runs = [train(**each) for each in runs_of]
    if rank == 0:
        output.write_text(json.dumps(runs))
    torch.distributed.destroy_process_group()
