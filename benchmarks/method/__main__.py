"""python -m benchmarks.method (make experiment): MoTE beside MoE-LLaVA and dense models at equal expert memory.

Trains every variant with every seed, stores each as an export would, and measures accuracy by task on held-out handwriting. What
is done is kept: run it again after an interruption and it goes on. Writes benchmarks/results/method.json, method.md and
method.png; docs/results.md says what they show.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mote_export.atomic import atomic_path

from . import ROOT, exports, report, runs
from .data import make_scenes, save_scenes
from .recipe import Recipe
from .variants import VARIANT, VARIANTS, seeds_of

RESULTS = ROOT / "benchmarks" / "results"
RAW = "method.json"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "experiment", help="checkpoints, kept to go on from"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 1 2 3")
    parser.add_argument("--only", nargs="+", choices=list(VARIANT), help="variants to train; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each (default: %(default)s)")
    parser.add_argument(
        "--shorten", type=float, default=1.0, metavar="FACTOR", help="a share of the steps, to see that it runs"
    )
    parser.add_argument("--render", action="store_true", help=f"train nothing; tables and picture from {RAW}")
    arguments = parser.parse_args()
    if not 0 < arguments.shorten <= 1 or arguments.jobs < 1:
        parser.error("--shorten is a number above 0 and up to 1, --jobs at least 1")
    return arguments


def prepare(folder: runs.Folder, recipe: Recipe, jobs: int) -> None:
    """Pictures; and a folder of another recipe is refused."""
    folder.root.mkdir(parents=True, exist_ok=True)
    known = folder.root / "recipe.json"
    text = json.dumps({key: value for key, value in recipe.to_dict().items() if key != "seeds"}, indent=2) + "\n"
    if known.exists() and known.read_text() != text:
        sys.exit(f"{folder.root} holds runs of another recipe: delete it, or choose another folder with --work.")
    known.write_text(text)
    for path, split, number in (
        (folder.train, "train", recipe.train_scenes),
        (folder.test, "test", recipe.test_scenes),
    ):
        if not path.exists():
            scenes = make_scenes(split, number, jobs)  # type: ignore[arg-type]
            with atomic_path(path) as temporary:
                save_scenes(scenes, temporary)


Job = tuple[str, Callable[..., None], tuple[Any, ...], Path]


def run_jobs(jobs: list[Job], folder: runs.Folder, recipe: Recipe, workers: int) -> None:
    """Those that are not done yet, so many at a time."""
    waiting = [job for job in jobs if not runs.is_done(job[3])]
    context = multiprocessing.get_context("spawn")
    with (
        tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="run") as bar,
        ProcessPoolExecutor(workers, mp_context=context, initializer=runs.start_worker) as pool,
    ):
        futures = {pool.submit(function, folder, recipe, *rest): name for name, function, rest, _ in waiting}
        for future in as_completed(futures):
            future.result()
            bar.set_description(f"done: {futures[future]}")
            bar.update()


def run(folder: runs.Folder, recipe: Recipe, only: list[str], workers: int) -> None:
    """Base model, stage II of every seed, stage III of every variant and seed, in this order."""
    run_jobs([("base", runs.train_base, (), folder.base)], folder, recipe, 1)
    dense: list[Job] = [
        (f"stage II, seed {seed}", runs.train_dense, (seed,), folder.dense(seed)) for seed in recipe.seeds
    ]
    run_jobs(dense, folder, recipe, workers)
    variants: list[Job] = [
        (f"{name}, seed {seed}", runs.train_variant, (seed, name), folder.variant(name, seed))
        for name in only
        for seed in seeds_of(VARIANT[name], recipe.seeds)
    ]
    run_jobs(variants, folder, recipe, workers)
    if {variant for _, variant, _ in exports.EXPORTED} & set(only):
        run_jobs([("exports", exports.measure_exports, (recipe.seeds[0],), folder.exports)], folder, recipe, 1)


def commit() -> str:
    """Of the working tree, with a plus where files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (
        "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


def note_run(folder: runs.Folder, code: str, minutes: float) -> list[dict[str, Any]]:
    """Every call that the results took, this one the last."""
    path = folder.root / "runs.json"
    noted: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    noted.append({"commit": code, "date": datetime.now(UTC).strftime("%Y-%m-%d"), "minutes": minutes})
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(noted, indent=1) + "\n")
    return noted


def main() -> int:
    arguments = parse()
    raw = arguments.output / RAW
    if not arguments.render:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        recipe = Recipe(seeds=tuple(arguments.seeds or Recipe().seeds))
        recipe = recipe if arguments.shorten == 1.0 else recipe.shortened(arguments.shorten)
        only = arguments.only or [variant.name for variant in VARIANTS]
        folder = runs.Folder(arguments.work)
        began, code = time.monotonic(), commit()  # of the code that runs; files may change meanwhile
        prepare(folder, recipe, arguments.jobs)
        run(folder, recipe, only, arguments.jobs)
        arguments.output.mkdir(parents=True, exist_ok=True)
        content = {
            "runs": note_run(folder, code, round((time.monotonic() - began) / 60, 1)),
            "recipe": recipe.to_dict(),
            **report.collect(folder, recipe, only),
        }
        with atomic_path(raw) as path:
            path.write_text(json.dumps(content, indent=1) + "\n")
    report.render(json.loads(raw.read_text()), arguments.output)
    print((arguments.output / report.TABLES).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
