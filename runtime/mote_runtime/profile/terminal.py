"""The summary in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mote_runtime.profile import units
from mote_runtime.profile.measures import MEASURES

_SHOWN_OPERATORS = 5


def print_summary(console: Console, document: Mapping[str, Any]) -> None:
    """The figures of all runs, and the operators that take most of a decode step."""
    runs: Sequence[Mapping[str, Any]] = document["runs"]
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for run in runs:
        table.add_column(escape(run["label"]), justify="right", no_wrap=True)
    for measure in MEASURES:
        found = [run["summary"].get(measure.key) for run in runs]
        if any(found):
            table.add_row(measure.title, *(_cell(values, measure.unit) for values in found))
    latency = [run["summary"].get("inter_token_ms") for run in runs]
    if any(latency):
        table.add_row(
            "inter-token latency, p99 of all",
            *(units.figure(each["p99"], "ms") if each else units.NOTHING for each in latency),
        )
    console.print(table)
    for run in runs:
        _print_operators(console, run)
    energy = document["energy"]
    if not energy["measured"]:
        console.print(f"energy: not measured, {escape(str(energy['reason']))}", style="dim", highlight=False)


def _cell(values: Mapping[str, Any] | None, unit: str) -> str:
    if values is None:
        return units.NOTHING
    if values["n"] == 1:
        return units.figure(values["median"], unit)
    spread = units.with_deviation(values["mean"], values["standard_deviation"], unit)
    return f"{units.figure(values['median'], unit)} [dim](mean {spread})[/]"


def _print_operators(console: Console, run: Mapping[str, Any]) -> None:
    for name, stage in (run["breakdown"] or {}).items():
        if name not in ("prefill", "decode step") or not stage["operators"]:
            continue
        parts = [f"{each['name']} {units.share(each['share'])}" for each in stage["operators"][:_SHOWN_OPERATORS]]
        each_ms = units.figure(stage["ms"] / stage["count"], "ms")
        console.print(
            f"{escape(run['label'])}, traced {name} of {each_ms}: {escape(', '.join(parts))}", highlight=False
        )


def print_comparison(console: Console, comparison: Mapping[str, Any]) -> None:
    """A table of ratios and verdicts."""
    title = f"A: {escape(comparison['a'])}   B: {escape(comparison['b'])}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    for column in ("", "A", "B", "B / A", "95 %", "p", "B is"):
        table.add_column(column, justify="left" if column in ("", "B is") else "right")
    styles = {"faster": "green", "less": "green", "slower": "red", "more": "red"}
    for row in comparison["rows"]:
        interval, style = row["interval"], styles.get(row["verdict"], "dim")
        table.add_row(
            row["title"],
            units.figure(row["median_a"], row["unit"]),
            units.figure(row["median_b"], row["unit"]),
            units.NOTHING if row["ratio"] is None else f"{row['ratio']:.3f}",
            units.NOTHING if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}",
            units.NOTHING if row["p"] is None else f"{row['p']:.2g}",
            f"[{style}]{row['verdict']} (n = {row['n_a']}, {row['n_b']})[/]",
        )
    console.print(table)
