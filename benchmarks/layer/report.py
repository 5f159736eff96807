"""layer.md: tables of one run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .bars import verdicts
from .limits import Limits
from .operators import OURS, Operator, operators
from .results import Record
from .shapes import EXPERTS, SHAPES

EXECUTORCH = "executorch-int4"
#: Cores that other programs may use while the figures still stand.
DISTURBED = 0.15
_EXECUTORCH_LABEL = "ExecuTorch quantized_moe_ffn int4"
_SHARED_TITLES = {
    "none": "routed experts only",
    "int4": "with the shared expert in int4",
    "int8": "with the shared expert in int8",
    "bf16": "with the shared expert in bf16; the peers' in float32",
}
#: The peers have neither: ours in int8 stands beside their int4, ours in bf16 beside their float32.
_PEERS_SHARED = {"none": "none", "int4": "int4", "int8": "int4", "bf16": "fp32"}
_VERDICT = {True: "PASS", False: "MISS", None: "not measured"}


def experts_expected(tokens: int) -> float:
    """How many different experts that many tokens select, if each is as likely."""
    return EXPERTS * (1 - (1 - 1 / EXPERTS) ** tokens)


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _machine(about: dict[str, Any], limits: Limits) -> Iterator[str]:
    kind = "short run (--quick)" if about["quick"] else "run"
    yield (
        f"{about['cpu']} ({about['architecture']}), {about['cores']} cores, L3 {about['l3_bytes'] >> 20} MiB; "
        f"onnxruntime {about['onnxruntime']}. One {kind} of {about['minutes']} minutes, {about['date']}; "
        f"other programs kept {about['cores_busy_elsewhere']:.2f} of the cores busy meanwhile."
    )
    yield ""
    if about["cores_busy_elsewhere"] > DISTURBED:
        yield "**A disturbed run: times, limits and verdicts below say little. Repeat it while other programs rest.**"
        yield ""
    yield "Limits, the best of several measurements in this run:"
    yield ""
    details = limits.details
    names = {
        "DRAM, bytes read": (limits.dram_bytes_s, 1e9, "GB/s"),
        f"integer dot products ({details['integer_isa']})": (limits.integer_mul_adds_s, 1e9, "G multiply-adds/s"),
        f"float32 ({details['float_isa']}, fused)": (limits.float_mul_adds_s, 1e9, "G multiply-adds/s"),
    }
    rows = [
        [name, *(f"{values[threads] / unit:.1f} {suffix}" for threads in sorted(values))]
        for name, (values, unit, suffix) in names.items()
    ]
    yield from _table(["", *(f"{threads} thread{'s' * (threads > 1)}" for threads in limits.dram_bytes_s)], rows)


def _bars(records: list[Record], loads: dict[str, Any]) -> Iterator[str]:
    yield "## Bars"
    yield ""
    yield "1.5B shape, top-1 of 4; of our two packings the faster one counts. Ratios of medians of this one run."
    yield ""
    rows = [[v.bar, v.required, v.aim, v.found, _VERDICT[v.reached]] for v in verdicts(records, loads)]
    yield from _table(["bar", "required", "aim", "found", ""], rows)


def _rows_of(shared: str) -> list[tuple[str, str, bool]]:
    """(name, label, is it ours) of a table."""
    rows = [(one.name, one.label, True) for one in operators() if one.side == OURS and one.shared == shared]
    rows += [(one.name, one.label, False) for one in operators() if _is_peer_of(one, shared)]
    if shared == "none":
        rows.append((EXECUTORCH, _EXECUTORCH_LABEL, False))
    return rows


def _is_peer_of(operator: Operator, shared: str) -> bool:
    return operator.side != OURS and operator.shared == _PEERS_SHARED[shared]


def _cell(record: Record | None, best_peer: float | None, ours: bool) -> list[str]:
    """Time and spread; ratio to the best peer; share of the limit."""
    if record is None:
        return ["", "", ""]
    if record.failure:
        return [f"failed: {record.failure[:60]}", "", ""]
    time = f"{record.median_ms:.3f} ({record.p10_ms:.3f} – {record.p90_ms:.3f})"
    ratio = f"{best_peer / record.median_ms:.2f}" if best_peer and ours else ""
    return [time, ratio, f"{record.limit_ms / record.median_ms:.0%}"]


def _shape_tables(shape: str, records: list[Record]) -> Iterator[str]:
    size = SHAPES[shape]
    yield f"## {shape}: hidden {size.hidden}, intermediate {size.intermediate}, {EXPERTS} experts, top-1"
    yield ""
    by_key = {(one.operator, one.tokens, one.threads): one for one in records if one.shape == shape}
    threads = sorted({one.threads for one in by_key.values()})
    for shared, title in _SHARED_TITLES.items():
        names = [row for row in _rows_of(shared) if any(key[0] == row[0] for key in by_key)]
        repeated = _PEERS_SHARED[shared] != shared and not any(ours for _, _, ours in names)
        if not names or repeated:
            continue
        yield f"### {title}"
        yield ""
        rows = []
        for tokens in sorted({one.tokens for one in by_key.values()}):
            best = {count: _best_peer(by_key, names, tokens, count) for count in threads}
            for name, label, ours in names:
                cells = [_cell(by_key.get((name, tokens, count)), best[count], ours) for count in threads]
                if any(any(cell) for cell in cells):
                    rows.append(
                        [str(tokens), f"**{label}**" if ours else label, *(text for cell in cells for text in cell)]
                    )
        heads = [text for count in threads for text in (f"ms, {count} thr. (p10 – p90)", "x best peer", "of limit")]
        yield from _table(["tokens", "operator", *heads], rows)


def _best_peer(
    by_key: dict[tuple[str, int, int], Record], rows: list[tuple[str, str, bool]], tokens: int, threads: int
) -> float | None:
    found = [by_key.get((name, tokens, threads)) for name, _, ours in rows if not ours]
    return min((record.median_ms for record in found if record and not record.failure), default=None)


def _loads(loads: dict[str, Any]) -> Iterator[str]:
    if not loads:
        return
    labels = {operator.name: operator.label for operator in operators()}
    yield "## Loading 28 layers of 1.5B"
    yield ""
    yield (
        "Page cache warm, 2 threads, a fresh process for each of three loads, medians. "
        "Memory in MB after the first token: anonymous beyond what the runtime takes with an empty model, "
        "file-backed (pages of the file, which the system can drop), and the peak of both."
    )
    yield ""
    rows = []
    for name, load in loads.items():
        if "failure" in load:
            rows.append([labels[name], f"failed: {load['failure']}", "", "", "", ""])
            continue
        memory = load["memory"]
        rows.append(
            [
                labels[name],
                f"{load['open_seconds']:.3f} s",
                f"{load['first_token_seconds']:.3f} s",
                f"{(memory['anonymous'] - load['base_anonymous']) / 1e6:.0f}",
                f"{memory['file'] / 1e6:.0f}",
                f"{memory['peak'] / 1e6:.0f}",
            ]
        )
    yield from _table(["operator", "session open", "first token", "anonymous", "file-backed", "peak"], rows)


def _arm(path: Path) -> Iterator[str]:
    """What benchmarks/llvm_mca.py wrote, if it did."""
    if not path.is_file():
        return
    found = json.loads(path.read_text())
    yield "## ARM kernels: static analysis, not a measurement"
    yield ""
    yield (
        f"By llvm-mca {found['llvm']}, of inner loops, with all data in the first cache: multiply-adds per cycle, and "
        "their share of the model's peak. What is in it and what is not: [arm_static.md](arm_static.md)."
    )
    yield ""
    for isa in dict.fromkeys(one["isa"] for one in found["results"]):
        own = [one for one in found["results"] if one["isa"] == isa]
        cpus = list(dict.fromkeys(one["cpu"] for one in own))
        cells: dict[tuple[str, int], dict[str, str]] = {}
        for one in own:
            # One token, and the widest tile; what lies between is in arm_static.md.
            if one["tokens"] in (1, max(other["tokens"] for other in own if other["format"] == one["format"])):
                share = f"{one['macs_per_cycle']:.1f} ({one['share']:.0%})"
                cells.setdefault((one["format"], one["tokens"]), {})[one["cpu"]] = share
        rows = [[kind, str(tokens), *(of.get(cpu, "") for cpu in cpus)] for (kind, tokens), of in cells.items()]
        yield from _table([f"{isa}: format", "tokens", *cpus], rows)


def render(
    about: dict[str, Any], limits: Limits, records: list[Record], loads: dict[str, Any], arm_static: Path
) -> str:
    lines = ["# The layer beside its peers", "", *_machine(about, limits), *_bars(records, loads)]
    lines += ["![roofline](layer_roofline.png)", ""]
    lines += [
        "Milliseconds for one layer: median (10th – 90th percentile). "
        "“x best peer” is the best peer's median over ours. "
        "“of limit” is the least time that this machine needs for the operator's own bytes and products, over its median. "
        "How it is measured: [docs/benchmarks.md](../../docs/benchmarks.md).",
        "",
    ]
    for shape in dict.fromkeys(record.shape for record in records):
        lines += _shape_tables(shape, records)
    lines += [*_loads(loads), *_arm(arm_static)]
    return "\n".join(lines).rstrip() + "\n"
