"""The page: its sections, one after the other."""

import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from mote_runtime.profile import units
from mote_runtime.profile.facts import busy
from mote_runtime.profile.measures import GREATEST_SLOWDOWN, MEASURES, PERCENTILES, inter_token_ms
from mote_runtime.profile.record import Record
from mote_runtime.profile.report import charts
from mote_runtime.profile.report.markup import Child, Markup, join, tag, trusted
from mote_runtime.profile.statistics import percentile
from mote_runtime.profile.trace import vocabulary

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_HEADLINES = (
    ("decode_token_per_sec", "decode"),
    ("prefill_token_per_sec", "prefill, picture included"),
    ("time_to_first_token_ms", "time to first token"),
    ("load_ms", "load"),
    ("peak_anonymous_bytes", "peak memory, anonymous"),
    ("peak_file_bytes", "peak memory, file-backed"),
)
_SHOWN_OPERATORS = 8
_SHOWN_PHASES = 10
_LEAST_SCALE_MS = 1e-3  # marks may be equal: they are written to the microsecond
_LEAST_SHARE = 0.005  # of the memory limit; what reads less waits for something else


def render(document: Mapping[str, Any]) -> str:
    """The page of a profile's document; everything in it that came from outside is escaped."""
    runs: Sequence[Mapping[str, Any]] = document["runs"]
    records = [Record.from_json(run["record"]) for run in runs]
    names = _colours(runs)
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"mote-profile: {_title(runs)}"),
        tag("style", trusted(style)),
    )
    body = tag(
        "main",
        _header(document, runs),
        _headlines(runs),
        _comparisons(document.get("comparisons") or []),
        _latency(runs, records),
        _operators(runs, names),
        _memory_limit(document, runs, names),
        _phases(runs),
        _memory(runs, records),
        _experts(runs),
        _measures(runs),
        _facts(document, runs),
    )
    return "<!doctype html>\n" + tag("html", tag("head", head), tag("body", body), lang="en") + "\n"


def _title(runs: Sequence[Mapping[str, Any]]) -> str:
    return " and ".join(dict.fromkeys(str(run["model"]["name"]) for run in runs))


def _header(document: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Markup:
    device = document["device"]
    parts = [device.get("processor") or device.get("model"), device.get("architecture"), device.get("system")]
    prompt = runs[0]["record"]["repetitions"]
    tokens = f"{prompt[0]['prompt_tokens']} tokens in, {prompt[0]['generated_tokens']} out" if prompt else ""
    line = " · ".join(str(part) for part in [*parts, tokens, document["created"]] if part)
    note = busy(device)
    return tag("header", tag("h1", _title(runs)), tag("p", line), tag("p", note, class_="bad") if note else None)


def _headlines(runs: Sequence[Mapping[str, Any]]) -> Markup:
    units_of = {measure.key: measure.unit for measure in MEASURES}
    cards = []
    for run in runs:
        figures = []
        for key, title in _HEADLINES:
            found = run["summary"].get(key)
            if found is not None:
                figures.append(
                    tag(
                        "div",
                        tag("b", units.figure(found["median"], units_of[key])),
                        tag("span", title),
                        class_="figure",
                    )
                )
        record = run["record"]
        with_what = f"{record['runtime']} {record['runtime_version']}"
        cards.append(
            tag(
                "section",
                tag("h3", run["label"] if run["label"] == record["runtime"] else f"{run['label']} · {with_what}"),
                tag("div", figures, class_="figures"),
                class_="card",
            )
        )
    return tag("div", cards, class_="grid")


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> Child:
    if not comparisons:
        return None
    parts: list[Child] = [
        tag("h2", "Comparison"),
        tag(
            "p",
            "Ratios of medians, B over A, with their 95 % interval. A verdict needs both: p below 0.01 and an interval without 1.",
        ),
    ]
    for each in comparisons:
        head = tag("tr", *(tag("th", text) for text in ("", "A", "B", "B / A", "95 % interval", "p", "B is")))
        rows = [_comparison_row(row) for row in each["rows"]]
        title = tag("h3", f"A: {each['a']}, B: {each['b']}")
        parts.append(tag("section", title, tag("div", tag("table", head, rows), class_="scroll"), class_="card"))
    return join(*parts)


def _comparison_row(row: Mapping[str, Any]) -> Markup:
    interval = row["interval"]
    style = {"faster": "good", "less": "good", "slower": "bad", "more": "bad"}.get(row["verdict"])
    return tag(
        "tr",
        tag("td", row["title"]),
        tag("td", units.figure(row["median_a"], row["unit"])),
        tag("td", units.figure(row["median_b"], row["unit"])),
        tag("td", units.NOTHING if row["ratio"] is None else f"{row['ratio']:.3f}"),
        tag("td", units.NOTHING if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"),
        tag("td", units.NOTHING if row["p"] is None else f"{row['p']:.2g}"),
        tag("td", f"{row['verdict']} (n = {row['n_a']}, {row['n_b']})", class_=style),
    )


def _latency(runs: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> Child:
    times = [[time for each in record.repetitions for time in inter_token_ms(each)] for record in records]
    present = [each for each in times if each]
    if not present:
        return None
    high = max(_LEAST_SCALE_MS, *(percentile(each, 99.5) for each in present)) * 1.05
    low = min(min(each) for each in present) * 0.95
    low = 0.0 if low < high / 3 else low
    cards = [
        tag(
            "section",
            tag("h3", run["label"]),
            charts.latency_histogram(each, PERCENTILES, low, high, index % 8),
            tag(
                "div",
                f"{len(each)} steps of {len(record.repetitions)} answers; longest {units.figure(max(each), 'ms')}",
                class_="legend",
            ),
            class_="card",
        )
        for index, (run, record, each) in enumerate(zip(runs, records, times, strict=True))
        if each
    ]
    note = (
        "From one token to the next, all measured answers together, on one scale. The last bar holds everything beyond."
    )
    return join(tag("h2", "Latency between tokens"), tag("p", note), tag("div", cards, class_="grid"))


def _colours(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A class for each of the operators that take most time in all runs together; our own comes first."""
    sums: dict[str, float] = {}
    for run in runs:
        for stage in (run.get("breakdown") or {}).values():
            for operator in stage["operators"]:
                sums[operator["name"]] = sums.get(operator["name"], 0.0) + operator["share"]
    first = [vocabulary.TERNARY_MOE, vocabulary.TERNARY_MATMUL, vocabulary.QUANTIZED_MATMUL, "MatMul", "Attention"]
    ranked = [name for name in first if name in sums] + sorted(
        (name for name in sums if name not in first), key=lambda name: -sums[name]
    )
    return {name: f"s{index}" for index, name in enumerate(ranked[:8])}


def _operators(runs: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> Child:
    cards = []
    for run in runs:
        parts: list[Child] = [tag("h3", run["label"])]
        factor = (run.get("trace") or {}).get("slowdown")
        if factor is not None and factor > GREATEST_SLOWDOWN:
            parts.append(
                tag(
                    "p", f"The runtime's own profiler made a decode step take {factor:.1f} times as long.", class_="bad"
                )
            )
        for stage, figures in (run.get("breakdown") or {}).items():
            if figures["operators"]:
                parts.append(_stage(stage, figures, colours))
        if run.get("breakdown"):
            cards.append(tag("section", parts, class_="card"))
    if not cards:
        return None
    note = (
        "One traced answer, apart from the measured ones. What a stage does outside of operators is the runtime's and "
        "Python's own work."
    )
    return join(tag("h2", "Where the time goes"), tag("p", note), tag("div", cards, class_="grid"))


def _stage(stage: str, figures: Mapping[str, Any], colours: Mapping[str, str]) -> Markup:
    operators = figures["operators"]
    shown = operators[:_SHOWN_OPERATORS]
    parts = [(each["name"], each["ms"], colours.get(each["name"], "rest")) for each in shown]
    others = sum(each["ms"] for each in operators[_SHOWN_OPERATORS:])
    parts += [
        ("other operators", others, "rest"),
        ("outside operators", max(figures["outside_operators_ms"], 0.0), "cell-back"),
    ]
    title = f"{stage}s" if stage == vocabulary.DECODE and figures["count"] != 1 else stage
    per = (
        f"{units.figure(figures['ms'] / figures['count'], 'ms')} each, {figures['count']} of them"
        if figures["count"] > 1
        else units.figure(figures["ms"], "ms")
    )
    rows = [
        tag(
            "tr",
            tag("td", tag("span", class_=f"dot {style}"), name),
            tag("td", units.figure(value / figures["count"], "ms")),
            tag("td", units.share(value / figures["ms"]) if figures["ms"] else units.NOTHING),
        )
        for name, value, style in parts
        if value > 0
    ]
    return tag(
        "div",
        tag("h4", tag("span", title), tag("span", per)),
        charts.stacked_bar(parts, figures["ms"]),
        tag("table", rows),
        class_="stage",
    )


def _memory_limit(document: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> Child:
    limit = document.get("memory_limit")
    if limit is None or not any(run.get("breakdown") for run in runs):
        return None
    cache = limit["last_level_cache_bytes"]
    best, middle = (units.speed(limit[f"{which}_bytes_per_sec"]) for which in ("best", "median"))
    note = (
        f"{limit['threads']} threads read {best} from a buffer of {units.size(limit['buffer_bytes'])} (median of the passes "
        f"{middle}). Stored weights and scales that operators read, over their time, as a share of that. What a cache still "
        "holds from the step before comes faster, so a small model can exceed it"
        + (f"; the last level cache has {units.size(cache)}." if cache else ".")
    )
    cards = []
    for run in runs:
        parts: list[Child] = [tag("h3", run["label"])]
        for stage in (vocabulary.DECODE, vocabulary.PREFILL):
            figures = (run.get("breakdown") or {}).get(stage)
            rows = (
                [
                    _limit_row(each, figures["count"], colours)
                    for each in figures["operators"]
                    if (each["share_of_memory_limit"] or 0) >= _LEAST_SHARE
                ]
                if figures
                else []
            )
            if rows:
                head = tag("tr", *(tag("th", text) for text in (stage, "read each", "speed", "of limit", "")))
                parts.append(tag("div", tag("table", head, rows[:_SHOWN_OPERATORS]), class_="scroll"))
        if len(parts) > 1:
            cards.append(tag("section", parts, class_="card"))
    return (
        join(tag("h2", "Share of the memory limit"), tag("p", note), tag("div", cards, class_="grid"))
        if cards
        else None
    )


def _limit_row(each: Mapping[str, Any], count: int, colours: Mapping[str, str]) -> Markup:
    style = colours.get(each["name"], "rest")
    return tag(
        "tr",
        tag("td", tag("span", class_=f"dot {style}"), each["name"]),
        tag("td", units.size(each["weight_bytes"] / count)),
        tag("td", units.speed(each["bytes_per_sec"])),
        tag("td", units.share(each["share_of_memory_limit"])),
        tag("td", charts.share_bar(each["share_of_memory_limit"], style), class_="bar"),
    )


def _phases(runs: Sequence[Mapping[str, Any]]) -> Child:
    cards = []
    for run in runs:
        parts: list[Child] = [tag("h3", run["label"])]
        for stage in (vocabulary.PREFILL, vocabulary.DECODE):
            figures = (run.get("breakdown") or {}).get(stage)
            if figures and figures["phases"]:
                total = sum(each["ms"] for each in figures["phases"])
                shown = figures["phases"][:_SHOWN_PHASES]
                named = [
                    (f"{each['name']} {each['expert']}".strip(), each["ms"], f"s{index % 8}")
                    for index, each in enumerate(shown)
                ]
                rows = [
                    tag(
                        "tr",
                        tag("td", tag("span", class_=f"dot {style}"), name),
                        tag("td", units.figure(value / figures["count"], "ms")),
                        tag("td", units.share(value / total if total else None)),
                        tag("td", units.speed(each["bytes_per_sec"])),
                    )
                    for (name, value, style), each in zip(named, shown, strict=True)
                ]
                title = tag(
                    "h4", tag("span", stage), tag("span", "sum over threads; bytes read by one thread per second")
                )
                parts.append(tag("div", title, charts.stacked_bar(named, total), tag("table", rows)))
        if len(parts) > 1:
            cards.append(tag("section", parts, class_="card"))
    if not cards:
        return None
    note = "The phases of our operators, of all layers together: routed experts and the shared one apart."
    return join(tag("h2", "Inside the layers of experts"), tag("p", note), tag("div", cards, class_="grid"))


def _memory(runs: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> Child:
    cards = []
    for run, record in zip(runs, records, strict=True):
        samples = record.memory.samples
        if len(samples) < 2:
            continue
        zero = samples[0][0]
        stages = [("load", record.model_load_start_ms), ("loaded", record.model_load_end_ms)]
        stages += [("first answer", each.inference_start_ms) for each in record.repetitions[:1]]
        most = (record.memory.peak_anonymous_bytes, record.memory.peak_file_bytes)
        peaks = "peak {} anonymous, {} file-backed".format(*map(units.size, most))
        legend = tag(
            "div",
            tag("span", tag("span", class_="dot anonymous"), "anonymous"),
            tag("span", tag("span", class_="dot file"), "file-backed"),
            tag("span", peaks),
            class_="legend",
        )
        chart = charts.memory_chart(
            [(when - zero, anonymous, file) for when, anonymous, file in samples],
            [(name, when - zero) for name, when in stages],
        )
        cards.append(tag("section", tag("h3", run["label"]), chart, legend, class_="card"))
    note = (
        "Resident memory of the measured process, Python and its modules included. File-backed pages are weights and code "
        "that the system can drop and read again."
    )
    return join(tag("h2", "Memory over time"), tag("p", note), tag("div", cards, class_="grid")) if cards else None


def _experts(runs: Sequence[Mapping[str, Any]]) -> Child:
    shown = [run for run in runs if (run.get("experts") or {}).get("choices_per_layer")]
    if not shown:
        return None
    cards = [
        tag(
            "section",
            tag("h3", run["label"]),
            charts.heat_map(run["experts"]["tokens"], run["experts"]["layers"]),
            class_="card",
        )
        for run in shown
    ]
    tokens = shown[0]["experts"]["choices_per_layer"]
    note = (
        "How many tokens the router of each layer sent to each expert in the traced answer: "
        f"{tokens} choices a layer, prompt and answer together."
    )
    return join(tag("h2", "Load of the experts"), tag("p", note), tag("div", cards, class_="grid"))


def _measures(runs: Sequence[Mapping[str, Any]]) -> Markup:
    head = [tag("th", "")]
    for run in runs:
        head += [tag("th", f"{run['label']}: median"), tag("th", "mean ± deviation"), tag("th", "n")]
    rows = []
    for measure in MEASURES:
        cells = [tag("td", measure.title)]
        found = [run["summary"].get(measure.key) for run in runs]
        for values in found:
            if values is None:
                cells += [tag("td", units.NOTHING)] * 3
            else:
                spread = units.with_deviation(values["mean"], values["standard_deviation"], measure.unit)
                cells += [
                    tag("td", units.figure(values["median"], measure.unit)),
                    tag("td", spread),
                    tag("td", values["n"]),
                ]
        if any(found):
            rows.append(tag("tr", cells))
    return join(
        tag("h2", "All figures"),
        tag("section", tag("div", tag("table", tag("tr", head), rows), class_="scroll"), class_="card"),
    )


def _facts(document: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Markup:
    settings = {key: value for key, value in runs[0]["settings"].items() if value is not None}
    energy = document["energy"]
    said = {
        key: value
        for key, value in document["device"].items()
        if value not in (None, "") and not isinstance(value, dict)
    }
    device = {key: _fact(key, value) for key, value in said.items()}
    device["energy"] = "measured" if energy["measured"] else f"not measured: {energy['reason']}"
    isa = {run["label"]: run["record"]["isa"] for run in runs if run["record"]["isa"]}
    tables = [
        ("Device", device),
        ("Versions", {**document["versions"], **{f"instruction set, {label}": value for label, value in isa.items()}}),
        ("Settings", {key.replace("_", " "): _fact(key, value) for key, value in settings.items()}),
        (
            "Model",
            {
                key.replace("_", " "): _fact(key, value)
                for key, value in runs[0]["model"].items()
                if value not in (None, "")
            },
        ),
    ]
    cards = [
        tag(
            "section",
            tag("h3", title),
            tag(
                "table",
                [
                    tag("tr", tag("td", name.replace("_", " ")), tag("td", value, class_="text"))
                    for name, value in facts.items()
                ],
            ),
            class_="card",
        )
        for title, facts in tables
        if facts
    ]
    command = tag("section", tag("h3", "To repeat"), tag("pre", shlex.join(document["command"])), class_="card")
    return join(tag("h2", "Device, versions, settings"), tag("div", cards, class_="grid"), tag("p"), command)


def _fact(key: str, value: object) -> str:
    if key.endswith("_bytes") and isinstance(value, int):
        return units.size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value) if value != "" else "default drawing"
