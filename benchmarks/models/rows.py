"""One row of the tables, a shape exported one way for one runtime: exported, opened, asked, and kept as JSON once it is done."""

import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.layer.limits import dram_of_the_moment

from mote_export.atomic import atomic_path

from . import children, exports, limited, manifests
from .shapes import RANDOM_SUFFIX, RUNTIME, THREADS, Preset, Shape, Target

BLOCK = 1 << 24
DRAM_SAMPLES = 5
LIMITED = ("3B", "quick")  # run once more with little memory
Advance = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What is the same for all rows.

    Attributes:
        work: folder of checkpoints, exports and finished rows.
        limits: the compiled program of benchmarks/limits.
        explicit: spell presets out as options.
        keep: leave checkpoints and exports there.
        steps: decode steps.
        commit: of the code, noted in each row.
    """

    work: Path
    limits: Path
    explicit: bool
    keep: bool
    steps: int
    commit: str

    def row_file(self, shape: Shape, preset: Preset, target: Target) -> Path:
        return self.work / "rows" / f"{shape.name}_{preset.name}_{target}.json"

    def export_file(self, shape: Shape, preset: Preset, target: Target) -> Path:
        """What was noted of an export that was kept."""
        return self.row_file(shape, preset, target).with_suffix(".export.json")

    def export(self, shape: Shape, preset: Preset, target: Target) -> Path:
        return self.work / "exports" / f"{shape.name}_{preset.name}_{target}"

    def checkpoint(self, shape: Shape) -> Path:
        return self.work / "checkpoints" / (shape.name if shape.on_disk else f"{shape.name}{RANDOM_SUFFIX}")

    def log(self, name: str) -> Path:
        return self.work / "logs" / f"{name}.log"


def read_all(folder: Path) -> None:
    """Into the page cache."""
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK):
                pass


def dram_now(setting: Setting) -> float:
    return statistics.median(dram_of_the_moment(setting.limits, THREADS) for _ in range(DRAM_SAMPLES))


def measure_runtime(setting: Setting, shape: Shape, folder: Path, target: Target) -> dict[str, Any]:
    """Opens and asks, DRAM's speed just before and just after; a dictionary with `failure` if that fails."""
    read_all(folder)
    before = dram_now(setting)
    command = children.python(
        "benchmarks.models.worker", folder, "--runtime", RUNTIME[target], "--steps", str(setting.steps)
    )
    run = children.run(command, setting.log(f"{folder.name}_run"))
    if run.failure:
        return {"failure": run.failure}
    found: dict[str, Any] = json.loads(run.output.splitlines()[-1])
    positions = found["prompt_tokens"] + setting.steps  # of the longest answer
    return found | {
        "peak": run.peak,
        "dram_bytes_s": [before, dram_now(setting)],
        "kv_bytes": shape.kv_bytes(positions),
        "kv_bytes_first_token": shape.kv_bytes(1),
        "planned_bytes": manifests.planned_bytes(folder) if target == "executorch" else {},
    }


def measure_bytes(shape: Shape, folder: Path, target: Target, preset: Preset) -> dict[str, Any]:
    """What a token reads. A portable export computes with other operators, for which no limit is told."""
    if "--portable" in preset.options:
        return {}
    parts = manifests.bytes_per_token(manifests.read_manifest(folder), shape)
    total = manifests.graph_bytes_per_token(folder) if target == "onnx" else sum(parts.values())
    return {"bytes_per_token": total, "bytes_per_token_by_part": parts}


def export_row(setting: Setting, shape: Shape, preset: Preset, target: Target) -> dict[str, Any]:
    """Exports, or finds what an earlier call with `keep` has left: the same figures, the same folder."""
    folder, noted = setting.export(shape, preset, target), setting.export_file(shape, preset, target)
    if setting.keep and folder.exists() and noted.exists():
        kept: dict[str, Any] = json.loads(noted.read_text())
        return kept
    shutil.rmtree(folder, ignore_errors=True)
    found = exports.measure_export(
        shape, setting.checkpoint(shape), folder, target, preset,
        explicit=setting.explicit, log=setting.log(f"{folder.name}_export"),
    )  # fmt: skip
    if setting.keep and "failure" not in found:
        write_json(noted, found)
    return found


def measure_row(setting: Setting, shape: Shape, preset: Preset, target: Target, advance: Advance) -> dict[str, Any]:
    """Everything about a row; a part that fails says so, and what does not build on it is measured all the same."""
    folder = setting.export(shape, preset, target)
    name = f"{shape.name} {preset.name} {target}"
    row: dict[str, Any] = {
        "shape": shape.name, "preset": preset.name, "target": target, "commit": setting.commit,
    }  # fmt: skip
    try:
        advance(f"{name}: export")
        row["export"] = export_row(setting, shape, preset, target)
        if "failure" in row["export"]:
            return row
        advance(f"{name}: run")
        row |= measure_bytes(shape, folder, target, preset)
        row["run"] = measure_runtime(setting, shape, folder, target)
        if shape.name in LIMITED and preset.name == "mobile":
            advance(f"{name}: run with little memory")
            row["limited"] = limited.measure(folder, target, setting.log(f"{folder.name}_free"))
    finally:
        if not setting.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return row


def failures(row: dict[str, Any]) -> list[str]:
    return [
        f"{part}: {row[part]['failure']}" for part in ("export", "run", "limited") if "failure" in row.get(part, {})
    ]


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
