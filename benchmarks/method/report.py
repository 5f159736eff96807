"""Tables and the picture of one experiment."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mote_export.atomic import atomic_path

from .recipe import Recipe
from .runs import RESULT, Folder
from .tasks import TASKS
from .variants import ROWS, VARIANT, Row, seeds_of

TABLES, PICTURE = "method.md", "method.png"
COLORS = {"dense": "tab:gray", "MoE-LLaVA": "tab:orange", "MoTE": "tab:blue"}
KIB = 1 << 10


def collect(folder: Folder, recipe: Recipe, variants: list[str]) -> dict[str, Any]:
    """Accuracies and bytes of every row and seed, router loads, and what the stages before came to."""

    def read(path: Path) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((path / RESULT).read_text())
        return content

    seeds = {name: seeds_of(VARIANT[name], recipe.seeds) for name in variants}
    results = {(name, seed): read(folder.variant(name, seed)) for name in variants for seed in seeds[name]}
    rows: dict[str, Any] = {}
    for row in ROWS:
        if row.variant in variants:
            by_seed = {seed: results[row.variant, seed]["rows"][row.name] for seed in seeds[row.variant]}
            rows[row.name] = _row(row, by_seed)
    routers = {
        name: {str(seed): _router(results[name, seed]["log"]) for seed in seeds[name]}
        for name in variants
        if any("router_load" in entry for entry in results[name, recipe.seeds[0]]["log"])
    }
    stages = {
        "base": read(folder.base)["accuracy"],
        "stage II": {str(seed): read(folder.dense(seed))["accuracy"] for seed in recipe.seeds},
        "up-cycled": {
            name: {str(seed): results[name, seed]["start"]["mean"] for seed in seeds[name]} for name in variants
        },
    }
    exports = read(folder.exports) if (folder.exports / RESULT).exists() else {}
    return {"rows": rows, "routers": routers, "stages": stages, "exports": exports}


def _row(row: Row, by_seed: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Of several quantizers the one that is better on average, the others beside it."""
    means = {
        index: statistics.mean(entries[index]["accuracy"]["mean"] for entries in by_seed.values())
        for index in range(len(next(iter(by_seed.values()))))
    }
    best = max(means, key=lambda index: means[index])
    chosen = {seed: entries[best] for seed, entries in by_seed.items()}
    first = next(iter(by_seed.values()))
    return {
        "bytes": first[best]["bytes"],
        "quantizer": first[best]["quantizer"],
        "accuracy": {str(seed): entry["accuracy"] for seed, entry in chosen.items()},
        "other_quantizers": {first[index]["quantizer"]: mean for index, mean in means.items() if index != best},
    }


def _router(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the run: the least and the greatest share of an expert at its end, and experts that were ever without a token."""
    entries = [entry for entry in log if "router_load" in entry]
    last = entries[-1]["router_load"]
    shares = [share for layer in last for share in layer]
    return {"least": min(shares), "greatest": max(shares), "dead": sum(map(_dead, entries)), "load": last}


def _dead(entry: dict[str, Any]) -> int:
    dead = entry["dead_experts"]
    return sum(dead) if isinstance(dead, list) else int(dead)


def mean_and_deviation(row: dict[str, Any], key: str = "mean") -> tuple[float, float]:
    """Over the seeds, in per cent."""
    values = [100 * accuracy[key] for accuracy in row["accuracy"].values()]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def render(content: dict[str, Any], output: Path) -> None:
    """Writes method.md and method.png."""
    with atomic_path(output / TABLES) as path:
        path.write_text("\n".join(_document(content)) + "\n")
    _plot(content, output / PICTURE)


def _document(content: dict[str, Any]) -> Iterator[str]:
    recipe, rows = content["recipe"], content["rows"]
    seeds = ", ".join(map(str, recipe["seeds"]))
    yield "# The method: table of one run"
    yield ""
    done = "; ".join(f"commit {run['commit']}, {run['date']}, {run['minutes']} minutes" for run in content["runs"])
    yield (
        f"`make experiment` ({done}; + is a working tree with changes), seeds {seeds}; stage III {recipe['moe']} steps; "
        f"{recipe['questions']} held-out questions of each task. Made by `python -m benchmarks.method`; do not edit."
    )
    yield ""
    yield "Per cent of answers that are right, the mean over the seeds and, for the mean over tasks, its standard deviation."
    yield ""
    yield f"| | KiB of experts | quantizer | mean | {' | '.join(TASKS)} |"
    yield f"|---|---:|---|---:|{'---:|' * len(TASKS)}"
    for row in (row for row in ROWS if row.name in rows):
        entry = rows[row.name]
        mean, deviation = mean_and_deviation(entry)
        spread = f" ± {deviation:.1f}" if len(entry["accuracy"]) > 1 else ""
        tasks = " | ".join(f"{mean_and_deviation(entry, task)[0]:.1f}" for task in TASKS)
        yield (
            f"| {row.title} | {entry['bytes'] / KIB:.1f} | {entry['quantizer'] or ''} | {mean:.1f}{spread} | {tasks} |"
        )
    yield ""
    yield from _other_quantizers(rows)
    yield from _exports(content["exports"], rows)
    yield from _stages(content["stages"])
    yield from _routers(content["routers"])


def _other_quantizers(rows: dict[str, Any]) -> Iterator[str]:
    yield "## The quantizer that was worse, mean over tasks"
    yield ""
    yield "| | in the table | mean | instead | mean |"
    yield "|---|---|---:|---|---:|"
    for row in (row for row in ROWS if row.name in rows):
        for quantizer, mean in rows[row.name]["other_quantizers"].items():
            entry = rows[row.name]
            yield f"| {row.title} | {entry['quantizer']} | {mean_and_deviation(entry)[0]:.1f} | {quantizer} | {100 * mean:.1f} |"
    yield ""


def _exports(exports: dict[str, Any], rows: dict[str, Any]) -> Iterator[str]:
    if not exports:
        return
    yield "## Models of the first seed, exported"
    yield ""
    yield "By `mote-export`, round-to-nearest; asked the first questions of each task, one after another."
    yield ""
    yield "| | KiB of experts in the export | in the table above | right in ONNX Runtime | in ExecuTorch | same answers |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row in (row for row in ROWS if row.name in exports):
        found, counted = exports[row.name], rows[row.name]["bytes"] / KIB
        right = " | ".join(f"{100 * found[target]:.1f} %" for target in ("onnx", "executorch"))
        same = f"{found['same_answers']} of {found['questions']}"
        yield f"| {row.title} | {found['bytes'] / KIB:.1f} | {counted:.1f} | {right} | {same} |"
    yield ""


def _stages(stages: dict[str, Any]) -> Iterator[str]:
    yield "## Before stage III"
    yield ""
    yield "| | mean over tasks, by seed |"
    yield "|---|---|"
    yield f"| base model, which has not seen the facts | {100 * stages['base']['mean']:.1f} |"
    yield f"| stage II | {_per_cent([each['mean'] for each in stages['stage II'].values()])} |"
    for name, values in stages["up-cycled"].items():
        yield f"| {name}, up-cycled, step 0 | {_per_cent(values.values())} |"
    yield ""


def _per_cent(shares: Iterable[float]) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in shares)


def _routers(routers: dict[str, Any]) -> Iterator[str]:
    yield "## Routers at the end of training"
    yield ""
    yield "Shares of the tokens since the last entry of the log, over all layers; an even share is 1 / E."
    yield ""
    yield "| | seed | least | greatest | experts without a token, in any entry |"
    yield "|---|---|---:|---:|---:|"
    for name, by_seed in routers.items():
        for seed, router in by_seed.items():
            yield f"| {name} | {seed} | {router['least']:.3f} | {router['greatest']:.3f} | {router['dead']} |"


def _plot(content: dict[str, Any], path: Path) -> None:
    """Accuracy over expert memory; lines join the ways to store one trained model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    shown = [row for row in ROWS if row.name in content["rows"] and row.family not in ("ablation", "attempt")]
    for variant in dict.fromkeys(row.variant for row in shown):
        of_variant = sorted(
            (row for row in shown if row.variant == variant), key=lambda row: content["rows"][row.name]["bytes"]
        )
        points = [
            (content["rows"][row.name]["bytes"] / KIB, *mean_and_deviation(content["rows"][row.name]))
            for row in of_variant
        ]
        x, y, deviation = zip(*points, strict=True)
        color = COLORS[of_variant[0].family]
        axes.errorbar(x, y, yerr=deviation, marker="o", color=color, capsize=3, linewidth=1)
        for row, (size, mean, _) in zip(of_variant, points, strict=True):
            axes.annotate(
                row.title.split(", ", 1)[1],
                (size, mean),
                textcoords="offset points",
                xytext=(5, 5),
                fontsize=7,
                color=color,
            )
    for family, color in COLORS.items():
        axes.plot([], [], marker="o", color=color, label=family)
    axes.legend(loc="lower right")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("memory of the feed-forward layers, KiB")
    axes.set_ylabel("right answers, mean over tasks, %")
    axes.set_title("Accuracy over expert memory: mean and deviation over the seeds", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
