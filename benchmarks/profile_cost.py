"""What profiling costs: decode speed of a model of real shape with nothing recorded, and with each source of a trace.

    python -m benchmarks.profile_cost [--export DIR] [--runtime NAME] [--rounds 3] [--threads 2]

Without DIR (what mote-export wrote for both targets) it makes a model of Qwen2.5-1.5B's shape with two layers, random
weights and a smaller vocabulary, which takes about three minutes and 8 GB of memory. The model is open once for each way of
running, all in one process, and their answers take turns step by step, in an order that rotates. So a step and the one it is
compared with are a fraction of a second apart, and whatever else the machine does meets both. Models opened first are slower
than later ones by up to a tenth, as their memory lies elsewhere; so all are opened anew in five orders, in which each way has
every place once. The unit is an answer: the median of the ratios of its steps. Prints a table.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import mote_runtime
from mote_runtime import Pipeline
from mote_runtime.profile import host
from mote_runtime.profile.measure import Subject
from mote_runtime.profile.memory import MemorySampler
from mote_runtime.profile.sample import DEFAULT_TEXT_PROMPT
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.statistics import compare
from mote_runtime.profile.trace.inner import InnerTrace

LAYERS, VOCAB = 2, 32768
OFF = "measured repetitions"
# What is recorded in each way of running; None: a model as users load it, by the same code as OFF.
RECORDED: dict[str, tuple[str, ...] | None] = {
    "mote_runtime.load": None,
    OFF: (),
    "traced: phases": ("phases",),
    "traced: operators": ("operators",),
    "traced: operators and phases": ("operators", "phases"),
}

Times: TypeAlias = tuple[float, float]  # by the clock and of the processor, of all threads


def make_export(folder: Path) -> Path:
    """Export a random model of real shape to both targets; the exported folder."""
    sys.path.insert(0, str(Path(__file__).parent))
    from real_shape import real_shape_checkpoint

    from mote_export.checkpoint import save_model_pt
    from mote_export.exporter import export

    checkpoint = real_shape_checkpoint(LAYERS, VOCAB)
    save_model_pt(folder / "model.pt", checkpoint.model.bfloat16(), checkpoint.files)
    del checkpoint
    export(folder / "model.pt", folder / "export", ["onnx", "executorch"])
    return folder / "export"


@dataclass(slots=True)
class Way:
    """One way of running: a loaded model, and what is recorded while it takes a step."""

    pipeline: Pipeline
    inner: InnerTrace | None = None
    _loop: Iterator[int] = field(init=False)

    def start(self, new_tokens: int) -> None:
        """Begin an answer; the prompt is not timed."""
        self._loop, _ = self.pipeline.measured_tokens(DEFAULT_TEXT_PROMPT, None, new_tokens, stop=False)
        next(self._loop)

    def step(self) -> Times:
        """One decode step."""
        if self.inner is not None:
            self.inner.start()
        wall, processor = time.perf_counter(), time.process_time()
        next(self._loop)
        times = time.perf_counter() - wall, time.process_time() - processor
        if self.inner is not None:
            self.inner.stop()
        return times


def measure(folder: Path, threads: int, rounds: int, new_tokens: int) -> dict[str, npt.NDArray[np.float64]]:
    """Times in seconds [answers, steps, 2] of each way, by the clock and of the processor; `rounds` answers in each order."""
    common = Settings("", "", None, max_new_tokens=new_tokens, threads=threads, warmup=1)
    settings = host.settings_for(folder, common, verify=False)
    names = list(RECORDED)
    times: dict[str, list[list[Times]]] = {name: [] for name in names}
    for order in range(len(names)):
        with contextlib.ExitStack() as stack:
            opened = {name: _open(name, settings, stack) for name in names[order:] + names[:order]}
            ways = {name: opened[name] for name in names}
            for number in range(rounds + 1):
                answer = _take_turns(ways, new_tokens)
                for name, steps in answer.items():
                    if number:  # the first round warms up
                        times[name].append(steps)
    return {name: np.array(values) for name, values in times.items()}


def _open(name: str, settings: Settings, stack: contextlib.ExitStack) -> Way:
    """The model for one way of running, until the stack is closed."""
    recorded = RECORDED[name]
    if recorded is None:
        return Way(stack.enter_context(mote_runtime.load(settings.path, threads=settings.threads, verify=False)))
    sampler = stack.enter_context(MemorySampler())
    profiles = Path(stack.enter_context(tempfile.TemporaryDirectory())) if "operators" in recorded else None
    subject = Subject(settings, sampler, profiles, traced=profiles is not None)
    stack.callback(subject.close)
    if subject.observed is not None:
        stack.callback(subject.observed.end_profile)
    target: Any = subject.manifest.target
    return Way(subject.pipeline, InnerTrace(target) if "phases" in recorded else None)


def _take_turns(ways: Mapping[str, Way], new_tokens: int) -> dict[str, list[Times]]:
    """One answer of each way, step by step in turns."""
    steps: dict[str, list[Times]] = {name: [] for name in ways}
    for way in ways.values():
        way.start(new_tokens)
    names = list(ways)
    for number in range(new_tokens - 1):
        for index in range(len(names)):
            name = names[(number + index) % len(names)]
            steps[name].append(ways[name].step())
    return steps


def report(runtime: str, threads: int, times: Mapping[str, npt.NDArray[np.float64]]) -> str:
    """A table: medians, and the cost relative to the measured repetitions with its 95 % interval."""
    base = times[OFF]
    lines = [f"{runtime}, {threads} threads, {len(base)} answers of {base.shape[1]} decode steps each", ""]
    lines += ["| | decode step, ms | cost | processor time, ms | cost |", "|---|---|---|---|---|"]
    for name, values in times.items():
        cells = []
        for clock in range(2):
            ratios = np.median(values[:, :, clock] / base[:, :, clock], axis=1)
            found = compare([1.0] * len(ratios), list(ratios))
            assert found.interval is not None
            low, high = ((bound - 1) * 100 for bound in found.interval)
            cost = f"{(found.median_b - 1) * 100:+.1f} % ({low:+.1f} to {high:+.1f})"
            cells += [f"{np.median(values[:, :, clock]) * 1e3:.3f}", cost]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, metavar="DIR")
    parser.add_argument("--runtime", choices=("onnxruntime", "executorch"))
    parser.add_argument("--rounds", type=int, default=3, help="answers of each way in each of the five orders")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.export or make_export(Path(temporary))
        for runtime, path in host.find_exports(folder, arguments.runtime).items():
            times = measure(path, arguments.threads, arguments.rounds, arguments.max_new_tokens)
            print(report(runtime, arguments.threads, times), flush=True)


if __name__ == "__main__":
    main()
