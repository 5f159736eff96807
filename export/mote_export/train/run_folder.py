"""The folder of a run: its log, and checkpoints that are complete or not there.

run.json                what makes the run's numbers, to tell whether a checkpoint belongs to it
log.jsonl               an entry a line
tensorboard/            the same for TensorBoard
checkpoints/step-N/     model, optimizer, schedule, random numbers and interval sums after step N
checkpoints/.saving/    a checkpoint that is being written; of no use after a kill
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mote_export.atomic import atomic_path
from mote_export.train.settings import TrainingError

IDENTITY, LOG, TENSORBOARD, CHECKPOINTS, SAVING = "run.json", "log.jsonl", "tensorboard", "checkpoints", ".saving"
STEP = "step-"


class RunFolder:
    """Args: path: absent, empty, or of an earlier start of the same run. keep: how many checkpoints stay."""

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path, self.keep = path, keep
        self.log_path, self.tensorboard = path / LOG, path / TENSORBOARD
        self.checkpoints = path / CHECKPOINTS
        self.saving = self.checkpoints / SAVING

    def steps(self) -> list[int]:
        """Of the complete checkpoints, ascending."""
        names = [entry.name for entry in self.checkpoints.glob(f"{STEP}*") if entry.is_dir()]
        return sorted(int(name[len(STEP) :]) for name in names if name[len(STEP) :].isdecimal())

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"{STEP}{step}"

    def last_checkpoint(self, before: int | None = None) -> Path | None:
        """The newest, or the newest of a step before that one."""
        steps = [step for step in self.steps() if before is None or step < before]
        return self.checkpoint(steps[-1]) if steps else None

    @staticmethod
    def step_of(checkpoint: Path | None) -> int:
        """0 without a checkpoint."""
        return 0 if checkpoint is None else int(checkpoint.name[len(STEP) :])

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raises TrainingError where the folder holds another run than that of `identity`."""
        file = self.path / IDENTITY
        if not file.exists():
            if self.path.exists() and not self.path.is_dir():
                raise TrainingError(f"{self.path} is a file, expected a folder for logs and checkpoints.")
            if self.path.exists() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise TrainingError(f"{self.path} is not empty and holds no run ({IDENTITY}): choose another output.")
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise TrainingError(f"{file} cannot be read: {error}; choose another output.") from error
        expected = json.loads(json.dumps(identity))
        if not isinstance(found, dict):
            raise TrainingError(f"{file} holds a JSON {type(found).__name__}; choose another output.")
        differing = [key for key in (*expected, *found) if found.get(key) != expected.get(key)]
        if differing:
            key = differing[0]
            raise TrainingError(
                f"{self.path} holds another run: its {key} is {found.get(key)!r}, this one's is {expected.get(key)!r}; choose "
                "another output, or remove that folder."
            )

    def begin(self, identity: Mapping[str, Any], step: int) -> None:
        """Makes the folder, writes who it belongs to, and cuts the log behind `step`, after which the run goes on."""
        if not (self.path / IDENTITY).exists():
            with atomic_path(self.path / IDENTITY) as temporary:
                temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        self.checkpoints.mkdir(exist_ok=True)
        for leftover in self.checkpoints.glob(".*"):  # of a start that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        if self.log_path.exists():
            lines = self.log_path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            with atomic_path(self.log_path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write_log(self, entry: Mapping[str, Any]) -> None:
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def put_in_place(self, written: Path, step: int) -> None:
        """Moves a complete checkpoint to its place and removes those that are too many."""
        written.replace(self.checkpoint(step))
        shutil.rmtree(self.saving, ignore_errors=True)
        for old in self.steps()[: -self.keep]:
            # Renamed first, so that a kill leaves no half of it under its name.
            doomed = self.checkpoints / f".old-{old}"
            self.checkpoint(old).replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def remove_checkpoints(self) -> None:
        """After the result is in place."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def _step_of(line: str) -> float:
    """Of a line of the log; infinite where a kill cut it short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
