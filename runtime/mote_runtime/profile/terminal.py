"""The summary in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mote_runtime.profile import units
from mote_runtime.profile.facts import busy
from mote_runtime.profile.measures import GREATEST_SLOWDOWN, MEASURES

_SHOWN_OPERATORS = 5


def print_summary(console: Console, document: Mapping[str, Any]) -> None:
    """The figures of all runs, and the operators that take most of a decode step."""
    runs: Sequence[Mapping[str, Any]] = document["runs"]
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    table.add_column("median ± deviation", no_wrap=True)
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
    if note := busy(document["device"]):
        console.print(escape(note), style="yellow", highlight=False)
    energy = document["energy"]
    if not energy["measured"]:
        console.print(f"energy: not measured, {escape(str(energy['reason']))}", style="dim", highlight=False)


def _cell(values: Mapping[str, Any] | None, unit: str) -> str:
    if values is None:
        return units.NOTHING
    if values["n"] == 1:
        return units.figure(values["median"], unit)
    return units.with_deviation(values["median"], values["standard_deviation"], unit)


def _print_operators(console: Console, run: Mapping[str, Any]) -> None:
    factor = (run["trace"] or {}).get("slowdown")
    if factor is not None and factor > GREATEST_SLOWDOWN:
        text = f"{run['label']}: with the runtime's own profiler a decode step took {factor:.1f} times as long"
        console.print(escape(text), style="yellow", highlight=False)
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
    for side in ("a", "b"):
        console.print(f"{side.upper()}: {escape(comparison[side])}", style="bold", highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "A", "B", "B / A (95 %)", "B is", "n"):
        table.add_column(column, justify="left" if column in ("", "B is", "n") else "right", no_wrap=column != "")
    styles = {"faster": "green", "less": "green", "slower": "red", "more": "red"}
    for row in comparison["rows"]:
        table.add_row(
            row["title"],
            units.figure(row["median_a"], row["unit"]),
            units.figure(row["median_b"], row["unit"]),
            _ratio(row),
            f"[{styles.get(row['verdict'], 'dim')}]{row['verdict']}[/]",
            f"{row['n_a']}, {row['n_b']}",
        )
    console.print(table)


def _ratio(row: Mapping[str, Any]) -> str:
    if row["ratio"] is None:
        return units.NOTHING
    interval = row["interval"]
    return f"{row['ratio']:.2f}" + (f" ({interval[0]:.2f}–{interval[1]:.2f})" if interval else "")


def stdout_console() -> Console:
    """A console for stdout; lines are not broken at 80 columns where no terminal asks for it."""
    console = Console()
    return console if console.is_terminal else Console(width=120)
