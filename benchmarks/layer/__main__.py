"""python -m benchmarks.layer (make bench): the layer beside its peers and the machine's limits. docs/benchmarks.md says how.

Writes benchmarks/results/layer.json, layer.md, layer_roofline.png and .svg.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime
from tqdm import tqdm

from mote_runtime import get_library_path

from . import executorch_peer, report, roofline
from .graphs import Traffic, traffic_of
from .limits import Limits, compile_limits, cpu_name, from_json, greatest, l3_bytes, measure_limits
from .load import measure_loads
from .measure import Effort, Point, Samples, Setting, measure_shape
from .operators import Operator, operators
from .results import Record, summarize
from .shapes import MAIN_SHAPE, MAX_DECODE_TOKENS, SHAPES, THREADS, TOKENS, Shape

RAW = "layer.json"
RESULTS = Path(__file__).parent.parent / "results"
ROOT = Path(__file__).parents[2]
FULL = Effort(turns=2, min_rounds=3, min_seconds=0.25)
QUICK = Effort(turns=3, min_rounds=3, min_seconds=0.1)
QUICK_TOKENS = (1, 128)
LOADED = ("ours-2bit-int4", "ours-1.6bit-int4", "qmoe2-int4")
#: It is slow on x86-64, where a call takes the reference path.
EXECUTORCH_TOKENS = (1, 16, 128)
EXECUTORCH_SECONDS = 300


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the 1.5B shape, 1 and 128 tokens: some four minutes")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="default: all; with --quick: 1.5B")
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 1 4 16 128 512; with --quick: 1 128")
    parser.add_argument("--threads", type=int, nargs="+", choices=THREADS, default=list(THREADS))
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="operators whose name holds one of these; no load test"
    )
    parser.add_argument("--plugin", type=Path, help="of ours for ONNX Runtime; default: the installed one")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--render", action="store_true", help=f"measure nothing; tables and picture from {RAW}")
    arguments = parser.parse_args()
    arguments.shapes = arguments.shapes or ([MAIN_SHAPE.name] if arguments.quick else list(SHAPES))
    arguments.tokens = arguments.tokens or list(QUICK_TOKENS if arguments.quick else TOKENS)
    if not arguments.render:
        arguments.plugin = arguments.plugin or get_library_path("onnxruntime")
    return arguments


def chosen_operators(parts: list[str] | None) -> list[Operator]:
    return [one for one in operators() if not parts or any(part in one.name for part in parts)]


def run_executorch(shape: Shape, tokens: list[int], threads: list[int]) -> dict[str, Any]:
    """In a process of its own; what goes wrong there is told, not raised."""
    command = [sys.executable, "-m", executorch_peer.__name__, "--shape", shape.name]
    command += ["--tokens", *map(str, tokens), "--threads", *map(str, threads)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=EXECUTORCH_SECONDS)
    except subprocess.TimeoutExpired:
        return {"failure": f"not done after {EXECUTORCH_SECONDS} s"}
    if run.returncode:
        return {"failure": f"exit status {run.returncode}: {run.stderr.strip().splitlines()[-1:]}"}
    return json.loads(run.stdout.splitlines()[-1])


def executorch_samples(shape: Shape, tokens: list[int], threads: list[int]) -> dict[Point, Samples]:
    counts = [count for count in tokens if count in EXECUTORCH_TOKENS]
    result = run_executorch(shape, counts, threads) if counts else {"points": []}
    name = report.EXECUTORCH
    if "failure" in result:
        return {Point(shape.name, name, m, t): Samples(failure=result["failure"]) for m in counts for t in threads}
    expert = executorch_peer.bytes_of_expert(shape)
    return {
        Point(shape.name, name, one["tokens"], one["threads"]): Samples(
            one["layer_seconds"], expert * report.experts_expected(one["tokens"]), 1
        )
        for one in result["points"]
    }


def measure_all(arguments: argparse.Namespace, folder: Path, program: Path) -> tuple[dict[Point, Samples], Limits]:
    chosen = chosen_operators(arguments.only)
    setting = Setting(QUICK if arguments.quick else FULL, l3_bytes(), arguments.plugin, program)
    graphs = (min(arguments.tokens) <= MAX_DECODE_TOKENS) + (max(arguments.tokens) > MAX_DECODE_TOKENS)
    steps = len(arguments.shapes) * len(chosen) * graphs * len(arguments.threads) * setting.effort.turns
    samples: dict[Point, Samples] = {}
    limits = [measure_limits(program)]
    with tqdm(total=steps, unit="session") as bar:

        def advance(text: str) -> None:
            bar.set_postfix_str(text)
            bar.update()

        for name in arguments.shapes:
            shape = SHAPES[name]
            with tempfile.TemporaryDirectory(dir=folder) as weights:
                samples |= measure_shape(
                    Path(weights), shape, chosen, arguments.tokens, arguments.threads, setting, advance
                )
            if not arguments.only or any(part in report.EXECUTORCH for part in arguments.only):
                samples |= executorch_samples(shape, arguments.tokens, arguments.threads)
            limits.append(measure_limits(program))
    return samples, greatest(limits)


def traffic_by_operator(shape: Shape) -> dict[str, Traffic]:
    found = {operator.name: traffic_of(shape, operator.layer) for operator in operators()}
    return found | {report.EXECUTORCH: found["qmoe4-none"]}


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "l3_bytes": l3_bytes(),
        "onnxruntime": onnxruntime.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "quick": arguments.quick,
    }


def busy_seconds() -> tuple[float, float]:
    """CPU time since some moment: of the whole machine, and of this program with those that it ran."""
    user, nice, system, _, _, irq, soft_irq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    own = os.times()
    all_ticks = user + nice + system + irq + soft_irq + steal
    return all_ticks / os.sysconf("SC_CLK_TCK"), own.user + own.system + own.children_user + own.children_system


def write_report(folder: Path) -> None:
    """Tables and picture of the run whose figures lie in `folder`."""
    run = json.loads((folder / RAW).read_text())
    limits = from_json(run["limits"])
    records = [Record(**point) for point in run["points"]]
    text = report.render(run["machine"], limits, records, run["loads"], folder / "arm_static.json")
    (folder / "layer.md").write_text(text)
    roofline.draw(records, limits, folder / "layer_roofline")
    print(text)


def main() -> None:
    arguments = parse()
    if arguments.render:
        write_report(arguments.output)
        return
    about = machine(arguments)
    start = time.perf_counter()
    all_before, own_before = busy_seconds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples, limits = measure_all(arguments, folder, compile_limits(folder))
        loaded = [operator for operator in operators() if operator.name in LOADED]
        loads = {} if arguments.only else measure_loads(loaded, arguments.plugin)
    seconds = time.perf_counter() - start
    all_after, own_after = busy_seconds()
    about["minutes"] = round(seconds / 60, 1)
    # Including what the host took from a virtual machine.
    about["cores_busy_elsewhere"] = round(((all_after - all_before) - (own_after - own_before)) / seconds, 2)
    traffic = {shape: traffic_by_operator(SHAPES[shape]) for shape in arguments.shapes}
    records: list[Record] = [
        summarize(point, found, traffic[point.shape][point.operator], limits) for point, found in samples.items()
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    points = [asdict(record) for record in records]
    everything = {"machine": about, "limits": asdict(limits), "loads": loads, "points": points}
    (arguments.output / RAW).write_text(json.dumps(everything, indent=1) + "\n")
    write_report(arguments.output)


if __name__ == "__main__":
    main()
