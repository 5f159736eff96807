"""python -m benchmarks.models (make bench-models): models of real sizes, from checkpoint to answers, in both runtimes.

A row is a shape, a preset and a target: exported, opened, asked. Checkpoints are written with random weights, used and deleted
one after another. A finished row is kept: called again it goes on where it was stopped. Writes benchmarks/results/models.json,
models.md and models.png; docs/benchmarks.md says what they hold.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.layer.__main__ import busy_seconds
from benchmarks.layer.limits import compile_limits, cpu_name, measure_limits
from tqdm import tqdm

from mote_runtime.errors import MoteError

from . import ROOT, children, llama_cpp, report
from .bars import verdicts
from .rows import Setting, failures, measure_row, write_json
from .shapes import PRESETS, QUICK, SHAPES, TARGETS, THREADS, Preset, Shape, Target, presets_of

RESULTS = ROOT / "benchmarks" / "results"
RAW = "models.json"
STEPS, QUICK_STEPS = 48, 8
LLAMA_SHAPES = ("1.5B",)
ROOM = 4 * 10**9  # beside checkpoint and export: what an exporter keeps on disk meanwhile, and everybody else
Row = tuple[Shape, Preset, Target]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="default: all")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), help="default: all")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: both")
    parser.add_argument("--quick", action="store_true", help="a cut of 0.5B with 4 layers instead, to see that it runs")
    parser.add_argument("--steps", type=int, help=f"decode steps, whose median counts (default: {STEPS})")
    parser.add_argument("--explicit", action="store_true", help="spell presets out as options of mote-export")
    parser.add_argument("--no-llama-cpp", action="store_true", help="leave the comparison with llama.cpp out")
    parser.add_argument(
        "--folder",
        type=Path,
        help="for checkpoints, exports and finished rows (default: mote/models in XDG_CACHE_HOME)",
    )
    parser.add_argument("--keep", action="store_true", help="leave checkpoints and exports there (up to 70 GB)")
    parser.add_argument("--fresh", action="store_true", help="measure the chosen rows again, finished or not")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--render", action="store_true", help=f"measure nothing; tables and picture from {RAW}")
    arguments = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mote"
    arguments.folder = arguments.folder or cache / ("models-quick" if arguments.quick else "models")
    # A cut model says nothing that belongs beside real results.
    arguments.output = arguments.output or (arguments.folder if arguments.quick else RESULTS)
    arguments.steps = arguments.steps or (QUICK_STEPS if arguments.quick else STEPS)
    return arguments


def chosen_rows(arguments: argparse.Namespace) -> list[Row]:
    """Grouped by shape, as a checkpoint serves all rows of its shape."""
    shapes = QUICK if arguments.quick else [SHAPES[name] for name in arguments.shapes or SHAPES]
    names = arguments.presets or list(PRESETS)
    return [
        (shape, preset, target)
        for shape in shapes
        for preset in presets_of(shape, names)
        for target in arguments.targets
    ]


def check_room(folder: Path, rows: list[Row]) -> None:
    """Raises MoteError where the greatest checkpoint and its export would not fit."""
    if not rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    shape = max((shape for shape, _, _ in rows), key=_room_of)
    if free < _room_of(shape):
        raise MoteError(
            f"checkpoint and export of {shape.name} take up to {_room_of(shape) / 1e9:.0f} GB, but the disk of {folder} has "
            f"{free / 1e9:.0f} GB left: choose another with --folder, or smaller shapes with --shapes."
        )


def _room_of(shape: Shape) -> int:
    """The exporter may have the packed weights on the disk twice, while it writes them in place."""
    return (shape.checkpoint_bytes if shape.on_disk else 0) + 2 * shape.export_bytes + ROOM


def write_checkpoint(setting: Setting, shape: Shape) -> None:
    """In a process of its own, which lets this one stay small; its progress bar goes to the terminal."""
    path = setting.checkpoint(shape)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if shape.on_disk:
        subprocess.run(children.python("benchmarks.models.checkpoints", shape.name, path), check=True, cwd=ROOT)
    else:
        path.touch()


def delete_checkpoint(setting: Setting, shape: Shape) -> None:
    path = setting.checkpoint(shape)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def measure_rows(setting: Setting, rows: list[Row], bar: "tqdm[None]") -> None:
    for index, (shape, preset, target) in enumerate(rows):
        write_checkpoint(setting, shape)
        row = measure_row(setting, shape, preset, target, bar.set_postfix_str)
        for text in failures(row):
            tqdm.write(f"{shape.name} {preset.name} {target}: {text}")
        write_json(setting.row_file(shape, preset, target), row)
        bar.update()
        is_last = index + 1 == len(rows) or rows[index + 1][0] != shape
        if is_last and not setting.keep:
            delete_checkpoint(setting, shape)


def is_finished(path: Path) -> bool:
    """A row that failed is measured again; not where only the memory could not be limited, as a user may lack the right."""
    return path.exists() and not failures(json.loads(path.read_text()) | {"limited": {}})


def commit() -> str:
    """Of the working tree, with a plus where files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "export", "runtime", "benchmarks/models")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "onnxruntime": version("onnxruntime"),
        "executorch": version("executorch"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The chosen rows, and those of earlier calls."""
    work = arguments.folder
    rows = chosen_rows(arguments)
    (work / "tools").mkdir(parents=True, exist_ok=True)
    setting = Setting(
        work, compile_limits(work / "tools"), arguments.explicit, arguments.keep, arguments.steps, commit()
    )
    missing = [row for row in rows if arguments.fresh or not is_finished(setting.row_file(*row))]
    if arguments.fresh:
        for row in missing:
            setting.export_file(*row).unlink(missing_ok=True)
    check_room(work, missing)
    about, start, (all_before, own_before) = machine(), time.perf_counter(), busy_seconds()
    limits = [measure_limits(setting.limits)]
    with tqdm(total=len(rows), initial=len(rows) - len(missing), unit="row", desc="models") as bar:
        measure_rows(setting, missing, bar)
    llama: dict[str, Any] = {}
    for shape in {shape.name: shape for shape, _, _ in rows}.values():
        if not arguments.no_llama_cpp and (shape.name in LLAMA_SHAPES or shape is QUICK[0]):
            llama[shape.name] = measure_llama(setting, shape, fresh=arguments.fresh or bool(missing))
    limits.append(measure_limits(setting.limits))
    seconds, (all_after, own_after) = time.perf_counter() - start, busy_seconds()
    about["minutes"] = round(seconds / 60, 1)
    about["cores_busy_elsewhere"] = round(((all_after - all_before) - (own_after - own_before)) / seconds, 2)
    known = {shape.name: shape for shape in (QUICK if arguments.quick else SHAPES.values())}
    every = [(shape, preset, target) for shape in known.values() for preset in PRESETS.values() for target in TARGETS]
    return {
        "machine": about,
        "dram_bytes_s": max(one.dram_bytes_s[THREADS] for one in limits),
        "rows": [json.loads(path.read_text()) for row in every if (path := setting.row_file(*row)).exists()],
        "llama_cpp": llama,
    }


def measure_llama(setting: Setting, shape: Shape, *, fresh: bool) -> dict[str, Any]:
    path = setting.work / "rows" / f"{shape.name}_llama.cpp.json"
    if fresh or not path.exists():
        write_json(path, llama_cpp.measure(setting, shape))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def print_bars(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Bars", title_justify="left")
    for head in ("bar", "required", "found", ""):
        table.add_column(head)
    for one in verdicts(found["rows"], found["dram_bytes_s"]):
        table.add_row(one.bar, one.required, one.found, report.VERDICT[one.reached])
    Console().print(table)


def main() -> int:
    arguments = parse()
    raw = arguments.output / RAW
    if not arguments.render:
        try:
            found = measure(arguments)
        except MoteError as error:
            print(f"benchmarks.models: {error}", file=sys.stderr)
            return 1
        write_json(raw, found)
    run = json.loads(raw.read_text())
    report.render(run, arguments.output)
    print_bars(run)
    print(f"{arguments.output / report.TABLES}: all tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
