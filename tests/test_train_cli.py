"""mote-train as a user calls it: stages from files to files, refusals, resumption after a kill, and a full disk."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_text_checkpoint
from training import Texts, conversation, write_data, write_dense, write_mote, write_recipe
from transformers import TrainingArguments

from mote_export.checkpoint import load_checkpoint, load_dense, save_folder
from mote_export.cli.train import main
from mote_export.train import FitSettings, TrainingError, fit
from mote_export.train.callbacks import scalars
from mote_export.train.fit import training_arguments
from mote_export.train.recipe import load_recipe
from mote_export.train.trainer import MoteTrainer
from mote_runtime.errors import MoteError

EXAMPLES = Path(__file__).parent.parent / "examples" / "recipes"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_dense(folder / "dense")
    write_mote(folder / "mote.pt")
    write_data(folder / "pictures")
    return folder


def recipe(files: Path, folder: Path, **values: Any) -> Path:
    base = {
        "stage": "mote",
        "model": files / "mote.pt",
        "data": files / "pictures" / "data.json",
        "output": folder / "out",
    }
    return write_recipe(folder / "recipe.yaml", **(base | values))


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def state(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(path).model.state_dict())


@pytest.mark.parametrize("stage", ["connector", "instruction"])
def test_dense_stages_leave_a_folder_that_the_next_stage_takes(files: Path, tmp_path: Path, stage: str) -> None:
    base = {"stage": stage, "model": files / "dense", "output": tmp_path / "new" / "out"}
    path = recipe(files, tmp_path, **base, **({} if stage == "connector" else {"steps": None, "epochs": 1}))
    assert main([str(path)]) == 0
    before, after = load_dense(files / "dense"), load_dense(tmp_path / "new" / "out")
    changed = {
        name for name, tensor in after.model.state_dict().items() if not tensor.equal(before.model.state_dict()[name])
    }
    assert any("multi_modal_projector" in name for name in changed)
    assert any("language_model" in name for name in changed) == (stage == "instruction")
    assert after.files == before.files
    assert after.model.config.text_config.use_cache
    assert not list((tmp_path / "new" / "out").glob("checkpoints*"))
    log = entries(tmp_path / "new" / "out")
    # The connector has nothing to learn of texts: 9 rows of 12, of which 4 steps were asked.
    assert [entry["step"] for entry in log] == list(range(1, 5 if stage == "connector" else 7))
    assert {"loss", "learning_rate", "grad_norm"} <= log[0].keys()


def test_mote_stage_leaves_a_checkpoint_and_its_log(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(files, tmp_path, output=tmp_path / "new.pt", turns="independent", save_dtype="bf16")
    assert main([str(path), "--json"]) == 0
    plan, result = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (plan["rows"], plan["pictures"], plan["steps"], plan["left_out"]) == (12, 9, 4, {})
    assert result == {"output": str(tmp_path / "new.pt")}
    before, after = state(files / "mote.pt"), load_checkpoint(tmp_path / "new.pt")
    changed = {
        name for name, tensor in after.model.state_dict().items() if not tensor.equal(before[name].bfloat16().float())
    }
    assert changed
    assert all(".experts." in name or ".router." in name for name in changed)
    log = entries(tmp_path / "new-run")
    assert [len(layer) for layer in log[-1]["router_load"]] == [2, 2]
    assert all(sum(layer) == pytest.approx(1.0, abs=1e-5) for layer in log[-1]["router_load"])
    shares = log[-1]["ternary"][0]
    assert shares["minus"] + shares["zero"] + shares["plus"] == pytest.approx(1.0, abs=1e-5)
    assert shares["flipped"] > 0
    assert list((tmp_path / "new-run" / "tensorboard").glob("events*"))
    assert {"train/loss", "router_load/layer_1/expert_0", "ternary_flipped/layer_1"} <= dict(scalars(log[-1])).keys()


def test_a_text_model_is_trained_on_texts(tmp_path: Path) -> None:
    save_folder(tmp_path / "text", tiny_text_checkpoint())
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps(conversation(('a' * n, 'b')))}\n" for n in range(1, 5)))
    path = recipe(
        tmp_path, tmp_path, model=tmp_path / "text", data=tmp_path / "texts.jsonl", steps=2, learning_rate="1e-2"
    )
    assert main([str(path)]) == 0
    before, after = state(tmp_path / "text"), load_checkpoint(tmp_path / "out")
    assert not after.has_vision
    assert any(not tensor.equal(before[name]) for name, tensor in after.model.state_dict().items())


def test_dry_run_writes_nothing(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(files, tmp_path)
    assert main([str(path), "--dry-run"]) == 0
    assert "Stage mote" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


class Killed(BaseException):
    """As abrupt as a kill: nothing of the package catches it."""


def test_a_killed_run_goes_on_to_the_same_numbers(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Logs every 3 steps, checkpoints every 2: the interval of a log is cut by the kill, and so is an epoch of 6 batches.
    settings = {"steps": 9, "save_steps": 2, "logging_steps": 3, "gradient_accumulation": 1}
    whole = recipe(files, tmp_path, output=tmp_path / "whole", **settings)
    assert main([str(whole)]) == 0

    broken = recipe(files, tmp_path, output=tmp_path / "broken", **settings)
    save_sums = MoteTrainer._save_sums

    def killed_while_saving(self: MoteTrainer, *args: Any) -> None:
        if self.state.global_step == 6:
            raise Killed
        save_sums(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(MoteTrainer, "_save_sums", killed_while_saving)
        with pytest.raises(Killed):
            main([str(broken)])
    checkpoints = tmp_path / "broken" / "checkpoints"
    assert sorted(entry.name for entry in checkpoints.iterdir()) == [".saving", "step-2", "step-4"]
    assert main([str(broken), "--resume"]) == 0
    assert "Going on from" in capsys.readouterr().out
    assert entries(tmp_path / "broken") == entries(tmp_path / "whole")
    torch.testing.assert_close(state(tmp_path / "broken"), state(tmp_path / "whole"), rtol=0, atol=0)


def test_sigterm_saves_and_the_same_command_goes_on(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(files, tmp_path, save_steps=100)
    training_step = MoteTrainer.training_step

    def with_a_signal(self: MoteTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MoteTrainer, "training_step", with_a_signal)
        assert main([str(path)]) == 130
    assert "after step 2 of 4" in capsys.readouterr().err
    changed = recipe(files, tmp_path, seed=5)
    assert main([str(changed)]) == 1
    assert "its seed is 0, this one's is 5" in capsys.readouterr().err
    recipe(files, tmp_path, save_steps=100)
    assert main([str(path)]) == 0
    assert main([str(path)]) == 1
    assert "holds a model already" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(files, tmp_path, save_steps=1)
    compute_loss = MoteTrainer.compute_loss

    def diverging(self: MoteTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute_loss(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 2 else loss

    monkeypatch.setattr(MoteTrainer, "compute_loss", diverging)
    assert main([str(path)]) == 1
    assert "the loss of step 3 is not finite; the checkpoint" in capsys.readouterr().err
    assert sorted(entry.name for entry in (tmp_path / "out" / "checkpoints").iterdir()) == ["step-1", "step-2"]


def test_a_full_disk_is_one_sentence(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(files, tmp_path, save_steps=2, steps=4)
    save_checkpoint = MoteTrainer._save_checkpoint
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(self: MoteTrainer, *args: Any) -> None:
        if self.state.global_step == 4:  # weights no longer fit, logs still do
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        save_checkpoint(self, *args)

    monkeypatch.setattr(MoteTrainer, "_save_checkpoint", on_a_full_disk)
    try:
        assert main([str(path)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = capsys.readouterr().err
    assert "a checkpoint cannot be written" in message
    assert "step-2 stays" in message
    assert [entry.name for entry in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-2"]


def test_a_result_that_cannot_be_written_is_written_by_the_next_start(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(files, tmp_path)

    def on_a_full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("mote_export.train.run.save_result", on_a_full_disk)
        assert main([str(path)]) == 1
    assert "No space left on device; the checkpoints that were there stay" in capsys.readouterr().err
    before = entries(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "checkpoints" / "step-4" / "trained.safetensors")
    assert main([str(path)]) == 0
    assert entries(tmp_path / "out") == before
    assert saved
    after = state(tmp_path / "out")
    assert all(after[name].equal(tensor) for name, tensor in saved.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "did you mean learning_rate?\n"),
        ({"stage": "motte"}, "did you mean mote"),
        ({"steps": "many"}, "expected an integer"),
        ({"steps": True}, "expected an integer"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"epochs": 1}, "both given"),
        ({"steps": None, "epochs": 0}, "epochs is 0.0, expected a positive number"),
        ({"learning_rate": 10**400}, "expected a number"),
        ({"seed": 1 << 32}, "seed is 4294967296, expected 0 to 4294967295"),
        ({"learning_rate": "fast"}, "expected a number"),
        ({"train_vision_tower": True}, "for instruction only"),
        ({"stage": "connector", "aux_loss_coef": 0.1}, "trains no experts"),
        ({"stage": "connector", "output": "a.pt"}, "is a folder"),
        ({"compile": True}, "no GPU"),
        ({"model": None}, "lacks model"),
        ({"model": "nowhere"}, "does not exist"),
        ({"data": "nowhere.json"}, "cannot be read"),
        ({"batch_size": 100}, "fewer than a batch"),
        ({"max_length": 8}, "no entry"),
    ],
)
def test_refusals(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], message: str
) -> None:
    assert main([str(recipe(files, tmp_path, **values))]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_dense_model_is_no_mote_checkpoint(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe(files, tmp_path, model=files / "dense"))]) == 1
    assert "mote-upcycle" in capsys.readouterr().err
    assert main([str(recipe(files, tmp_path)), "--resume"]) == 1
    assert "no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stage", "steps", "learning_rate"])
def test_a_value_whose_text_would_fill_the_memory(tmp_path: Path, name: str) -> None:
    lines = [f"- &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    path = tmp_path / "recipe.yaml"
    others = ["model: a", "data: b", "output: c", *(["stage: mote"] if name != "stage" else [])]
    path.write_text("\n".join([*others, f"{name}:", "- &a0 [1]", *lines, ""]))
    with pytest.raises(MoteError, match=f"^{name} is .* expected") as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 4000


def test_a_folder_of_something_else_is_left_alone(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_text("mine")
    assert main([str(recipe(files, tmp_path))]) == 1
    assert "is not empty and holds no run" in capsys.readouterr().err
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["tokenizer.json"]


def test_a_batch_for_each_process_and_a_gpu_for_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = FitSettings(batch_size=2, learning_rate=0.1, device="cpu")
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(TrainingError, match="for each of 2 processes"):
            training_arguments(torch.nn.Linear(1, 1), settings, tmp_path, 3)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(TrainingError, match="sees 2 GPUs"):
        training_arguments(torch.nn.Linear(1, 1), settings, tmp_path, 3)


def test_the_log_that_fit_returns_has_a_loss_in_every_entry(tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        """With a frozen number, which has no dimension."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)
            self.shift = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.scale * x - self.shift).pow(2).mean()}

    settings = FitSettings(batch_size=1, learning_rate=0.1, steps=2, device="cpu")
    log = fit(Scaled(), Texts(4), lambda rows: {"x": torch.ones(len(rows))}, settings, tmp_path / "out")
    assert [entry["step"] for entry in log if entry["loss"] > 0] == [1, 2]
    assert len(log) == 2


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n", "seed: 1\nseed: 2\n", "a: &x [*x]\n", "? [a]\n: b\n", "\0"])
def test_broken_recipes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(MoteError):
        load_recipe(path)


@pytest.mark.parametrize("stage", ["connector", "instruction", "mote"])
def test_example_recipes(stage: str) -> None:
    parsed = load_recipe(EXAMPLES / f"{stage}.yaml")
    assert parsed.stage == stage
    assert parsed.settings().learning_rate == (1e-3 if stage == "connector" else 2e-5)
