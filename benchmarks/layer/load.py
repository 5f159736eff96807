"""Loading a model of 28 layers: time from the file to the first token, and memory that belongs to the process alone.

python -m benchmarks.layer.load MODEL.onnx --plugin PLUGIN      (a process of its own for each load; prints JSON)
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .graphs import Graph, WeightFiles, write
from .measure import check_finite, open_session
from .operators import Operator
from .shapes import LOAD_LAYERS, MAIN_SHAPE, Shape

THREADS = 2
REPEATS = 3
_TINY = Shape("tiny", 8, 8)


def _identity(graph: Graph, x: str, y: str) -> None:
    graph.add("Identity", [x], y)


def resident() -> dict[str, int]:
    """Bytes by kind, as the kernel counts them: anonymous (heap, copies of weights) and file-backed (mapped files)."""
    text = Path("/proc/self/status").read_text()
    found = {key: int(value) << 10 for key, value in re.findall(r"^(Rss\w+|VmHWM):\s+(\d+) kB", text, re.MULTILINE)}
    return {"anonymous": found["RssAnon"], "file": found["RssFile"], "peak": found["VmHWM"]}


def load_once(path: Path, base: Path, hidden: int, plugin: Path) -> dict[str, Any]:
    """In this process, which has opened nothing yet. A model of no weights comes first: what it takes is the runtime's own."""
    open_session(base, THREADS, plugin).run(None, {"x": np.zeros((1, _TINY.hidden), np.float32)})
    before = resident()
    x = np.random.default_rng(0).standard_normal((1, hidden), dtype=np.float32)
    start = time.perf_counter()
    session = open_session(path, THREADS, plugin)
    opened = time.perf_counter()
    session.run(None, {"x": x})
    first = time.perf_counter()
    memory = resident()
    check_finite(session, x)
    return {
        "open_seconds": opened - start,
        "first_token_seconds": first - start,
        "base_anonymous": before["anonymous"],
        "memory": memory,
    }


def _read_all(paths: list[Path]) -> None:
    """Into the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def _load(model: Path, base: Path, plugin: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", __name__, str(model), "--base", str(base), "--plugin", str(plugin)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode:
        return {
            "failure": run.stderr.strip().splitlines()[-1] if run.stderr.strip() else f"exit status {run.returncode}"
        }
    return json.loads(run.stdout)


def measure_loads(operators: list[Operator], plugin: Path) -> dict[str, Any]:
    """Medians by operator; operators take turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = WeightFiles(folder)
        base = write(folder, "base", _TINY, _identity, 1, files).path
        paths = {
            operator.name: write(folder, operator.name, MAIN_SHAPE, operator.layer, LOAD_LAYERS, files, chain=True).path
            for operator in operators
        }
        runs: dict[str, list[dict[str, Any]]] = {operator: [] for operator in paths}
        for _ in range(REPEATS):
            for operator, path in paths.items():
                _read_all(files.paths())
                runs[operator].append(_load(path, base, plugin))
    return {operator: _median_of(loads) for operator, loads in runs.items()}


def _median_of(loads: list[dict[str, Any]]) -> dict[str, Any]:
    failures = [load for load in loads if "failure" in load]
    if failures:
        return failures[0]
    middle: dict[str, Any] = {
        key: statistics.median(load[key] for load in loads)
        for key in ("open_seconds", "first_token_seconds", "base_anonymous")
    }
    middle["memory"] = {kind: statistics.median(load["memory"][kind] for load in loads) for kind in loads[0]["memory"]}
    middle["first_token_seconds_of_runs"] = [load["first_token_seconds"] for load in loads]
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="a model without weights")
    parser.add_argument("--plugin", type=Path, required=True)
    arguments = parser.parse_args()
    print(json.dumps(load_once(arguments.model, arguments.base, MAIN_SHAPE.hidden, arguments.plugin)))


if __name__ == "__main__":
    main()
