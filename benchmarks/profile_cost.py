"""What profiling costs: decode speed of a model of real shape with nothing recorded, and with each source of a trace.

    python -m benchmarks.profile_cost [--export DIR] [--runtime NAME] [--rounds 15] [--threads 2]

Without DIR (what mote-export wrote for both targets) it makes a model of Qwen2.5-1.5B's shape with two layers, random
weights and a smaller vocabulary, which takes about three minutes and 8 GB of memory. All ways of running are open in one
process and take turns, in an order that rotates, so that whatever else the machine does meets all of them. Prints a table.
On a busy machine only processor time tells something, its least most, and only with one thread: more of them wait busily
for each other.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class Steps:
    """Decode steps of one answer in ms: medians by the clock and of the processor time of all threads, and the least of that."""

    wall: float
    processor: float
    least: float


def measure(folder: Path, threads: int, rounds: int, new_tokens: int) -> dict[str, list[Steps]]:
    """A value for each answer, by way of running."""
    common = Settings("", "", None, max_new_tokens=new_tokens, threads=threads, warmup=1)
    settings = host.settings_for(folder, common, verify=False)
    with MemorySampler() as sampler, tempfile.TemporaryDirectory() as profiles:
        plain = mote_runtime.load(folder, threads=threads, verify=False)
        quiet = Subject(settings, sampler, None, traced=False)
        noisy = Subject(settings, sampler, Path(profiles), traced=True)
        inner = InnerTrace(quiet.manifest.target)  # type: ignore[arg-type]

        def with_phases(pipeline: Pipeline) -> Steps:
            inner.start()
            try:
                return decode(pipeline, new_tokens)
            finally:
                inner.stop()

        ways: dict[str, Callable[[], Steps]] = {
            "mote_runtime.load": lambda: decode(plain, new_tokens),
            "measured repetitions": lambda: decode(quiet.pipeline, new_tokens),
            "traced: phases": lambda: with_phases(quiet.pipeline),
            "traced: operators": lambda: decode(noisy.pipeline, new_tokens),
            "traced: operators and phases": lambda: with_phases(noisy.pipeline),
        }
        times: dict[str, list[Steps]] = {name: [] for name in ways}
        names = list(ways)
        for number in range(rounds + 1):
            for index in range(len(names)):
                name = names[(number + index) % len(names)]
                value = ways[name]()
                if number:  # the first round warms up
                    times[name].append(value)
        noisy.observed.end_profile()  # type: ignore[union-attr]
        for pipeline in (plain, quiet, noisy):
            pipeline.close()
    return times


def decode(pipeline: Pipeline, new_tokens: int) -> Steps:
    """One answer, as mote-profile takes it."""
    loop, _ = pipeline.measured_tokens(DEFAULT_TEXT_PROMPT, None, new_tokens, stop=False)
    moments = [(time.perf_counter(), time.process_time()) for _ in loop]
    pairs = list(itertools.pairwise(moments))
    walls, processors = ([(after[clock] - before[clock]) * 1e3 for before, after in pairs] for clock in (0, 1))
    return Steps(statistics.median(walls), statistics.median(processors), min(processors))


def report(runtime: str, threads: int, times: dict[str, list[Steps]]) -> str:
    """A table: medians, and the cost relative to the measured repetitions with its 95 % interval."""
    base = times["measured repetitions"]
    lines = [f"{runtime}, {threads} threads, {len(base)} answers each", ""]
    lines += [
        "| | decode step, ms | cost | processor time, ms | cost | least, ms | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    best = min(each.least for each in base)
    for name, values in times.items():
        cells = []
        for clock in ("wall", "processor"):
            found = compare([getattr(each, clock) for each in base], [getattr(each, clock) for each in values])
            assert found.ratio is not None
            assert found.interval is not None
            low, high = ((bound - 1) * 100 for bound in found.interval)
            cells += [f"{found.median_b:.3f}", f"{(found.ratio - 1) * 100:+.1f} % ({low:+.1f} to {high:+.1f})"]
        least = min(each.least for each in values)
        cells += [f"{least:.3f}", f"{(least / best - 1) * 100:+.1f} %"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, metavar="DIR")
    parser.add_argument("--runtime", choices=("onnxruntime", "executorch"))
    parser.add_argument("--rounds", type=int, default=15)
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
