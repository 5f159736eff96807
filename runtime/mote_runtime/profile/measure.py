"""Measures one loaded model: answers the same question again and again and notes when each token was known."""

import os
import time
from importlib import metadata
from pathlib import Path

import mote_runtime
from mote_runtime.backends import Backend, import_backend
from mote_runtime.errors import MoteError
from mote_runtime.generation import now_ms
from mote_runtime.manifest import Manifest
from mote_runtime.pipeline import Pipeline
from mote_runtime.profile.energy import EnergyMeter
from mote_runtime.profile.memory import MemorySampler
from mote_runtime.profile.observe import ObservedBackend
from mote_runtime.profile.record import Record, Repetition
from mote_runtime.profile.sample import read_picture
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.trace.raw_trace import Marks
from mote_runtime.tokenizer import PromptTokenizer

_DISTRIBUTIONS = {"onnxruntime": "onnxruntime", "executorch": "executorch"}


class Subject:
    """One model in one runtime, loaded while it is watched. Close it, or use it in a `with` statement.

    With a `profile_folder` it is loaded to be traced: the runtime's own profiler runs and calls are noted. Without one neither
    is there: what is measured is what `mote_runtime.load` gives.
    """

    def __init__(
        self, settings: Settings, sampler: MemorySampler, profile_folder: Path | None, *, traced: bool
    ) -> None:
        if settings.cores is not None:
            pin(settings.cores)
        self._settings = settings
        self._sampler = sampler
        self._meter = EnergyMeter()
        self._repetitions: list[Repetition] = []
        self.manifest = Manifest.read(settings.path)
        self._image = read_picture(settings)
        backend_class = import_backend(self.manifest.target)  # importing Python modules is no part of loading a model
        self.load_start_ms = now_ms()
        tokenizer = PromptTokenizer(self.manifest.path("tokenizer.json"), self.manifest.model, self.manifest.prompt)
        backend: Backend = backend_class(self.manifest, settings.threads, profile_folder)
        self.observed = ObservedBackend(backend) if traced else None
        self.pipeline = Pipeline(self.manifest, tokenizer, self.observed or backend, load_start_ms=self.load_start_ms)
        self.load_end_ms = now_ms()
        sampler.mark()

    def repeat(self, *, keep: bool) -> Repetition:
        """One answer; with `keep` it becomes part of the record."""
        energy = self._meter.read()
        loop, timings = self.pipeline.measured_tokens(
            self._settings.prompt,
            self._image,
            self._settings.max_new_tokens,
            stop=not self._settings.ignore_eos,
        )
        ids: list[int] = []
        token_ms: list[float] = []
        for token_id in loop:
            token_ms.append(now_ms())
            ids.append(token_id)
        joules = self._meter.joules_since(energy)
        self._sampler.mark()
        repetition = Repetition.of(timings, tuple(ids), tuple(token_ms), joules)
        if keep:
            self._repetitions.append(repetition)
        return repetition

    def record(self) -> Record:
        """Everything that was measured."""
        return Record(
            tool=f"mote-profile {mote_runtime.__version__}",
            runtime=self.manifest.target,
            runtime_version=metadata.version(_DISTRIBUTIONS[self.manifest.target]),
            isa=None,
            threads=self._settings.threads,
            cores=self._settings.cores,
            warmup=self._settings.warmup,
            model_load_start_ms=self.load_start_ms,
            model_load_end_ms=self.load_end_ms,
            repetitions=tuple(self._repetitions),
            memory=self._sampler.memory(),
            monotonic_to_epoch_ms=monotonic_to_epoch_ms(),
            num_images=0 if self._image is None else 1,
        )

    def marks(self, answer: Repetition) -> Marks:
        """The moments of the process that a trace needs, on CLOCK_MONOTONIC."""
        offset = monotonic_to_epoch_ms()
        moments = (
            self.load_start_ms,
            self.load_end_ms,
            answer.inference_start_ms,
            answer.token_encode_end_ms,
            answer.inference_end_ms,
        )
        return Marks(*(round((moment - offset) * 1e6) for moment in moments))

    def close(self) -> None:
        """Let go of the model."""
        self.pipeline.close()


def monotonic_to_epoch_ms() -> float:
    """The epoch's milliseconds, as `now_ms` counts them, minus those of CLOCK_MONOTONIC."""
    before, middle, after = time.monotonic_ns(), now_ms(), time.monotonic_ns()
    return middle - (before + after) / 2e6


def pin(cores: tuple[int, ...]) -> None:
    """Let this process, with the threads it will have, run on these cores only; raises MoteError."""
    allowed = os.sched_getaffinity(0)
    if missing := sorted(set(cores) - allowed):
        raise MoteError(
            f"core {missing[0]} is not there to be used; expected some of {', '.join(map(str, sorted(allowed)))}"
        )
    os.sched_setaffinity(0, cores)
