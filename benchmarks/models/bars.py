"""The bars that the project sets itself for real sizes, each judged from the rows of one run."""

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.layer.bars import Verdict

from .shapes import CUT, TARGETS

GIB, MB = 1 << 30, 1e6
EXPORT_SECONDS, EXPORT_PEAK = 600, 4 * GIB
EXPERTS_OF_F = {"lossless": 3.0, "balanced": 2.0, "mobile": 1.5}  # with 4 experts: 2F, F or F/2 and F
EXPERTS_TOLERANCE = 0.01
OPEN_SECONDS = {"onnx": 1.5, "executorch": 0.5}
ANONYMOUS = 300 * MB
DECODE_SHARE, DECODE_RATIO, PREFILL_RATIO = 0.65, 1.1, 1.5
RAN_FOR_TEXT = ("token_embedding", "text_decoder")  # methods of a program for ExecuTorch
POSSIBLE_SHARE = 1.05  # above it DRAM was measured while something else used it
PREFILL_TOKENS = 608
NOT_MEASURED = "not measured"

Rows = dict[tuple[str, str, str], dict[str, Any]]  # by shape, preset, target


def by_name(rows: list[dict[str, Any]]) -> Rows:
    return {(row["shape"], row["preset"], row["target"]): row for row in rows}


def part(row: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Of a row, unless it was not measured or failed."""
    found = (row or {}).get(name)
    return found if found and "failure" not in found else None


def dram(found: dict[str, Any]) -> float:
    """Bytes a second beside the measurement."""
    return statistics.median(found["dram_bytes_s"])


def limit_share(row: dict[str, Any]) -> float | None:
    """Speed of decoding, as a share of what DRAM beside it gave for the bytes of a token."""
    run = part(row, "run")
    if not run or "bytes_per_token" not in row:
        return None
    return row["bytes_per_token"] / dram(run) / run["step_seconds"]


def cache_and_activations(run: dict[str, Any]) -> int:
    """Bytes of them that are resident after the first token of a text, one position, which needs next to no activations.

    ONNX Runtime: the KV cache of that position. ExecuTorch: what the two methods that ran plan for both, whatever they use of
    it, where at least as much became resident; else that position's cache as well.
    """
    memory = run["memory"]
    planned: int = sum(run.get("planned_bytes", {}).get(method, 0) for method in RAN_FOR_TEXT)
    if 0 < planned <= memory["first_token"]["anonymous"] - memory["opened"]["anonymous"]:
        return planned
    cache: int = run["kv_bytes_first_token"]
    return cache


def anonymous_beyond(run: dict[str, Any]) -> int:
    """Anonymous bytes after the first token of a text, less those before opening and those of cache and activations."""
    memory = run["memory"]
    grown: int = memory["first_token"]["anonymous"] - memory["before"]["anonymous"]
    return grown - cache_and_activations(run)


def _missing(text: str, required: str, row: dict[str, Any] | None, name: str, aim: str = "") -> Verdict:
    why = (row or {}).get(name, {}).get("failure", NOT_MEASURED)
    return Verdict(text, required, why, None, aim)


def _export(rows: Rows, target: str) -> Iterator[Verdict]:
    row = rows.get(("3B", "mobile", target))
    text = f"export of 3B, mobile, {target}"
    found = part(row, "export")
    required, aim = "peak RSS < 4 GiB, < 10 minutes", "2 GiB, 4 minutes"
    if not found:
        yield _missing(text, required, row, "export", aim)
        return
    minutes = found["seconds"] / 60
    detail = f"{found['peak'] / GIB:.2f} GiB (anonymous at most {found['anonymous'] / GIB:.2f}), {minutes:.1f} minutes"
    reached = found["peak"] < EXPORT_PEAK and found["seconds"] < EXPORT_SECONDS
    yield Verdict(text, required, detail, reached, aim)


def experts_of_f(export: dict[str, Any]) -> dict[str, float]:
    """Bytes over F: all of it, and the weights without routers and the float32 scales of ternary experts."""
    experts, parameters = export["experts"], export["expert_parameters"]
    return {
        "all": sum(experts.values()) / parameters,
        "weights": (experts["packed"] + experts["shared"]) / parameters,
    }


def _sizes(rows: Rows) -> Iterator[Verdict]:
    for preset, wanted in EXPERTS_OF_F.items():
        text = f"bytes of the experts, {preset}"
        required = f"{wanted:g} F within 1 %"
        found = {
            shape: experts_of_f(export)
            for (shape, of, _), row in rows.items()
            if of == preset and not shape.endswith("-16") and (export := part(row, "export"))
        }
        if not found:
            yield Verdict(text, required, NOT_MEASURED, None)
            continue
        detail = "; ".join(
            f"{shape}: {of['all']:.4f} F ({of['all'] / wanted - 1:+.2%}; without routers {of['weights'] / wanted - 1:+.2%})"
            for shape, of in found.items()
        )
        yield Verdict(
            text, required, detail, all(abs(of["all"] / wanted - 1) <= EXPERTS_TOLERANCE for of in found.values())
        )


def _smaller(rows: Rows) -> Iterator[Verdict]:
    text, required = "bytes of ternary experts, 1.6bit beside 2bit", "0.8 within 1 %"
    for target in TARGETS:
        five = part(rows.get(("0.5B", "mobile-1.6bit", target)), "export")
        four = part(rows.get(("0.5B", "mobile", target)), "export")
        if five and four:
            ratio = five["experts"]["packed"] / four["experts"]["packed"]
            yield Verdict(text, required, f"{ratio:.4f}", abs(ratio / 0.8 - 1) <= EXPERTS_TOLERANCE)
            return
    yield Verdict(text, required, NOT_MEASURED, None)


def _memory(rows: Rows, target: str) -> Iterator[Verdict]:
    row = rows.get(("3B", "mobile", target))
    run = part(row, "run")
    texts = (
        f"open of 3B, mobile, {target}, page cache warm",
        f"anonymous memory beyond KV cache and activations, 3B, {target}",
    )
    required = (f"< {OPEN_SECONDS[target]:g} s", f"< {ANONYMOUS / MB:g} MB")
    aims = ("0.3 s", "150 MB")
    if not run:
        yield from (
            _missing(text, want, row, "run", aim) for text, want, aim in zip(texts, required, aims, strict=True)
        )
        return
    found = f"{run['open_seconds']:.2f} s; the first token of a text {run['first_text_token_seconds']:.2f} s later"
    yield Verdict(texts[0], required[0], found, run["open_seconds"] < OPEN_SECONDS[target], aims[0])
    beyond = anonymous_beyond(run)
    after = run["memory"]["steady"]["anonymous"] - run["memory"]["before"]["anonymous"]
    kv = run["kv_bytes"] / MB
    detail = f"{beyond / MB:.0f} MB; after answers {after / MB:.0f} MB with KV cache ({kv:.0f} MB) and activations"
    if run.get("planned_bytes"):
        detail += f"; taken off for both {cache_and_activations(run) / MB:.0f} MB"
    yield Verdict(texts[1], required[1], detail, beyond < ANONYMOUS, aims[1])


def _decode(rows: Rows, target: str, best: float) -> Iterator[Verdict]:
    row = rows.get(("1.5B", "mobile", target))
    text = f"decode of 1.5B, mobile, {target}, two threads"
    run = part(row, "run")
    share = limit_share(row) if row else None
    if not run or share is None:
        yield _missing(text, f"≥ {DECODE_SHARE:.0%} of the DRAM limit", row, "run", "85 %")
    else:
        at_best = share * dram(run) / best
        detail = (
            f"{share:.0%} ({1 / run['step_seconds']:.1f} tokens/s; DRAM beside it {dram(run) / 1e9:.1f} GB/s); {at_best:.0%} at "
            "the best of this run"
        )
        reached = share >= DECODE_SHARE if share <= POSSIBLE_SHARE else None
        yield Verdict(text, f"≥ {DECODE_SHARE:.0%} of the DRAM limit", detail, reached, "85 %")
    # A portable export of all layers does not fit into memory: a seventh of the model stands for it, in both ways.
    row, portable = (rows.get((CUT, preset, target)) for preset in ("mobile", "portable"))
    run, other = part(row, "run"), part(portable, "run")
    for name, key, least, aim, better in (
        (text.replace("1.5B", CUT), "step_seconds", DECODE_RATIO, "1.3x", "lower"),
        (
            f"prefill of {PREFILL_TOKENS} tokens, {CUT}, mobile, {target}",
            "prefill_tokens_s",
            PREFILL_RATIO,
            "3x",
            "higher",
        ),
    ):
        required = f"≥ {least:g}x --portable"
        if not run or not other:
            yield _missing(name, required, portable if run else row, "run", aim)
            continue
        ratio = other[key] / run[key] if better == "lower" else run[key] / other[key]
        values = [1 / one[key] if better == "lower" else one[key] for one in (run, other)]
        detail = f"{ratio:.2f}x ({values[0]:.1f} and {values[1]:.1f} tokens/s)"
        yield Verdict(name, required, detail, ratio >= least, aim)


def _limited(rows: Rows, target: str) -> Iterator[Verdict]:
    row = rows.get(("3B", "mobile", target))
    text, required = f"3B, mobile, {target}, in 60 % of its file size", "runs to the end, same tokens"
    found = part(row, "limited")
    if not found:
        yield _missing(text, required, row, "limited")
        return
    detail = (
        f"{'the same' if found['same'] else 'OTHER'} {found['tokens']} tokens in {found['limit'] / GIB:.2f} GiB (used at most "
        f"{found['peak'] / GIB:.2f}), {found['seconds']:.0f} s instead of {found['free_seconds']:.0f} s"
    )
    yield Verdict(text, required, detail, found["same"])


def verdicts(rows: list[dict[str, Any]], best: float) -> list[Verdict]:
    """One for each bar and target; `best`: bytes a second that two threads read from DRAM at the best moment of the run."""
    known = by_name(rows)
    found = [verdict for target in TARGETS for verdict in _export(known, target)]
    found += [*_sizes(known), *_smaller(known)]
    found += [verdict for target in TARGETS for verdict in _memory(known, target)]
    found += [verdict for target in TARGETS for verdict in _decode(known, target, best)]
    found += [verdict for target in TARGETS for verdict in _limited(known, target)]
    return found
