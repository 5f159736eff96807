"""What profiling costs: decode speed of a model of real shape with nothing recorded, and with each source of a trace.

    python -m benchmarks.profile_cost [--export DIR] [--runtime NAME] [--rounds 15] [--threads 2]

Without DIR (what mote-export wrote for both targets) it makes a model of Qwen2.5-1.5B's shape with two layers, random
weights and a smaller vocabulary, which takes about three minutes and 8 GB of memory. All ways of running are open in one
process and take turns, in an order that rotates, so that whatever else the machine does meets all of them. Prints a table.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mote_runtime
from mote_runtime.profile import host
from mote_runtime.profile.inner import InnerTrace
from mote_runtime.profile.measure import Subject
from mote_runtime.profile.measures import inter_token_ms
from mote_runtime.profile.memory import MemorySampler
from mote_runtime.profile.sample import DEFAULT_TEXT_PROMPT
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.statistics import compare, summarize

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


def measure(folder: Path, threads: int, rounds: int, new_tokens: int) -> dict[str, list[float]]:
    """Decode time in ms per step, a value for each answer, by way of running."""
    common = Settings("", "", None, max_new_tokens=new_tokens, threads=threads, warmup=1)
    settings = host.settings_for(folder, common, verify=False)
    with MemorySampler() as sampler, tempfile.TemporaryDirectory() as profiles:
        plain = mote_runtime.load(folder, threads=threads, verify=False)
        quiet = Subject(settings, sampler, None, traced=False)
        noisy = Subject(settings, sampler, Path(profiles), traced=True)
        inner = InnerTrace(quiet.manifest.target)  # type: ignore[arg-type]

        def with_phases(subject: Subject) -> float:
            inner.start()
            try:
                return per_step(subject)
            finally:
                inner.stop()

        ways: dict[str, Callable[[], float]] = {
            "mote_runtime.load, nothing of the profiler": lambda: answer_ms(plain, new_tokens),
            "measured repetitions": lambda: per_step(quiet),
            "traced: phases": lambda: with_phases(quiet),
            "traced: operators": lambda: per_step(noisy),
            "traced: operators and phases": lambda: with_phases(noisy),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        names = list(ways)
        for number in range(rounds + 1):
            for index in range(len(names)):
                name = names[(number + index) % len(names)]
                value = ways[name]()
                if number:  # the first round warms up
                    times[name].append(value)
        noisy.observed.end_profile()  # type: ignore[union-attr]
        for each in (plain, quiet, noisy):
            each.close()
    return times


def per_step(subject: Subject) -> float:
    """Median time from token to token of one answer, as mote-profile takes it."""
    return summarize(inter_token_ms(subject.repeat(keep=False))).median


def answer_ms(pipeline: mote_runtime.Pipeline, new_tokens: int) -> float:
    """The same of an answer without anything of the profiler."""
    from mote_runtime.generation import now_ms

    loop, _ = pipeline.measured_tokens(DEFAULT_TEXT_PROMPT, None, new_tokens, stop=False)
    moments = [now_ms() for _ in loop]
    return summarize([after - before for before, after in itertools.pairwise(moments)]).median


def report(runtime: str, times: dict[str, list[float]]) -> str:
    """A table: median and cost relative to the measured repetitions, with its 95 % interval."""
    base = times["measured repetitions"]
    lines = [f"{runtime}, {len(base)} answers each", "", "| | decode step, ms | cost | 95 % |", "|---|---|---|---|"]
    for name, values in times.items():
        difference = compare(base, values)
        assert difference.ratio is not None
        assert difference.interval is not None
        low, high = ((bound - 1) * 100 for bound in difference.interval)
        cost = f"{(difference.ratio - 1) * 100:+.1f} %"
        lines.append(f"| {name} | {difference.median_b:.3f} | {cost} | {low:+.1f} to {high:+.1f} % |")
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
            print(
                report(runtime, measure(path, arguments.threads, arguments.rounds, arguments.max_new_tokens)),
                flush=True,
            )


if __name__ == "__main__":
    main()
