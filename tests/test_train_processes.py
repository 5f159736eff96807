"""Two processes train what one does with the same global batch: DDP and FSDP on CPUs, with gloo."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from train_processes import process, train
from training import write_data, write_dense, write_recipe

from mote_export.checkpoint import load_dense
from mote_export.cli.train import main


def run_processes(output: Path, *settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The same runs in two processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_processes"])
    processes = [context.Process(target=process, args=(rank, port, output, list(settings))) for rank in (0, 1)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(timeout=400)
        each.kill()
    assert [each.exitcode for each in processes] == [0, 0]
    return json.loads(output.read_text())  # type: ignore[no-any-return]


def assert_same(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert len(two["log"]) == len(one["log"]) > 2
    for of_two, of_one in zip(two["log"], one["log"], strict=True):
        assert of_two["loss"] == pytest.approx(of_one["loss"], rel=1e-5)
        assert of_two["grad_norm"] == pytest.approx(of_one["grad_norm"], rel=1e-4)
        assert of_two["router_load"] == of_one["router_load"]
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-5)


def test_ddp_equals_one_process(tmp_path: Path) -> None:
    accumulating = {"steps": 3, "gradient_accumulation": 2}
    plain, accumulated = run_processes(
        tmp_path / "log.json",
        {"settings": {"batch_size": 2, "steps": 4}},
        {"settings": {"batch_size": 1, **accumulating}},
    )
    assert_same(plain, train({"batch_size": 4, "steps": 4}))
    assert_same(accumulated, train({"batch_size": 2, **accumulating}))


@pytest.mark.long
@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_go_on_after_a_stop(tmp_path: Path, fsdp: bool) -> None:
    settings = {"batch_size": 2, "steps": 6, "logging_steps": 2, "fsdp": fsdp, "gradient_checkpointing": True}
    whole, stopped = run_processes(
        tmp_path / "log.json",
        {"settings": settings, "output": tmp_path / "whole"},
        {"settings": settings, "output": tmp_path / "stopped", "stop_after": 3},
    )
    assert stopped == whole
    assert_same(whole, train({"batch_size": 4, "steps": 6, "logging_steps": 2}))


@pytest.mark.long
def test_torchrun_trains_a_recipe(tmp_path: Path) -> None:
    write_data(tmp_path / "pictures")
    write_dense(tmp_path / "dense")
    base = {
        "stage": "instruction",
        "model": tmp_path / "dense",
        "data": tmp_path / "pictures" / "data.json",
        "batch_size": 2,
    }
    recipe = write_recipe(tmp_path / "recipe.yaml", **base, output=tmp_path / "two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "-m", "mote_export.cli.train", str(recipe)], check=True, env=environment, timeout=400)
    assert main([str(write_recipe(recipe, **{**base, "batch_size": 4}, output=tmp_path / "one"))]) == 0
    two, one = (load_dense(tmp_path / name).model.state_dict() for name in ("two", "one"))
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)
