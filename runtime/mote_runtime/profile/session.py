"""Runs the workers: measured ones take turns, so that a change of the machine meets all; then a traced one for each."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mote_runtime.manifest import Manifest
from mote_runtime.profile.record import Record
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.strict import ProfileError, parse_json
from mote_runtime.profile.trace.events import Part
from mote_runtime.profile.trace.inner import read_events
from mote_runtime.profile.trace.raw_trace import Call, Marks, RawTrace
from mote_runtime.profile.trace.readers import read_runs
from mote_runtime.profile.worker import PHASES_FILE

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]
# After an answer a runtime's threads wait busily for the next for a moment; the other worker must not meet them.
PAUSE_S = 0.05
_MAX_TAIL = 2000


class Worker:
    """A worker process and the conversation with it; ended at the end of a `with` block, whatever happened."""

    def __init__(self, settings: Settings, trace_folder: Path | None = None) -> None:
        self._name = settings.folder
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mote_runtime.profile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        trace = None if trace_folder is None else str(trace_folder)
        self._say({"settings": settings.to_json(), "trace": trace})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if error is not None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading its answer will say how it ended
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Its next answer; raises ProfileError with its own sentence where it failed, or with how it ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ProfileError(self._epitaph())
        answer: dict[str, Any] = parse_json(line, "a worker's answer")
        if "error" in answer:
            raise ProfileError(answer["error"])
        return answer

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._say(message)
        return self.hear()

    def _epitaph(self) -> str:
        code = self._process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - _MAX_TAIL))
        lines = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
        last = f"; its last line: {lines[-1]!r}" if lines else ""
        return f"the process that measures {self._name} was ended {how}{last}; run mote-run on the folder to see if it works at all"


def measure(subjects: Sequence[Settings], progress: Progress) -> list[Record]:
    """A record for each of the subjects, whose repetitions take turns (A B A B); raises ProfileError.

    Two subjects are in memory at once.
    """
    loads = _load_alone(subjects, progress)
    with contextlib.ExitStack() as stack:
        workers = []
        for settings in subjects:
            progress(f"loading {settings.folder}")
            worker = stack.enter_context(Worker(settings))
            worker.hear()
            workers.append(worker)
        rounds = max(settings.warmup + settings.repetitions for settings in subjects)
        for number in range(rounds):
            for settings, worker in zip(subjects, workers, strict=True):
                time.sleep(PAUSE_S)
                keep = number >= settings.warmup
                which = f"repetition {number - settings.warmup + 1} of {settings.repetitions}" if keep else "warm-up"
                progress(f"{settings.folder}: {which}")
                worker.ask(do="repeat", keep=keep)
        records = [Record.from_json(worker.ask(do="record")["record"], "a worker's record") for worker in workers]
    return [record.with_loads(times) for record, times in zip(records, loads, strict=True)]


def _load_alone(subjects: Sequence[Settings], progress: Progress) -> list[tuple[float, ...]]:
    """Loading times in ms of further processes, for each of the subjects, which take turns here as well."""
    times: list[list[float]] = [[] for _ in subjects]
    for number in range(1, max(settings.loads for settings in subjects)):
        for settings, found in zip(subjects, times, strict=True):
            progress(f"{settings.folder}: loading, {number} of {settings.loads}")
            with Worker(settings) as worker:
                found.append(float(worker.hear()["loaded"]))
    return [tuple(found) for found in times]


def trace(settings: Settings, progress: Progress) -> tuple[Record, RawTrace]:
    """One more repetition, traced, in a process of its own: its record and what was recorded; raises ProfileError."""
    progress(f"{settings.folder}: tracing")
    manifest = Manifest.read(settings.path)
    with _scratch_folder() as folder, Worker(settings, folder) as worker:
        answer = worker.hear()
        record = Record.from_json(answer["record"], "a worker's record")
        files = {part: Path(path) for part, path in answer["files"].items()}
        raw = RawTrace(
            runs=read_runs(record.runtime, files, manifest),
            calls=[Call(Part(part), begin, end, tokens) for part, begin, end, tokens in answer["calls"]],
            marks=Marks(*answer["marks"]),
            moe_layers=manifest.moe.layers,
            num_experts=manifest.moe.num_experts,
            phases=read_events(folder / PHASES_FILE, PHASES_FILE) if answer["phase_names"] else read_events(b"", ""),
            phase_names=answer["phase_names"],
            dropped=answer["dropped"],
        )
    return record, raw


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mote-profile-") as folder:
        yield Path(folder)
