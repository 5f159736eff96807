"""models.md and models.png: tables and picture of the finished rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.layer.bars import Verdict

from .bars import GIB, MB, anonymous_beyond, by_name, dram, experts_of_f, limit_share, part, verdicts
from .rows import failures
from .shapes import SMALL_IMAGE_TOKENS, TEXT_TOKENS

TABLES, PICTURE = "models.md", "models.png"
VERDICT = {True: "PASS", False: "MISS", None: "not measured"}
SMALL_TOWER = "112px"
DISTURBED = 0.15


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _name(row: dict[str, Any]) -> list[str]:
    return [row["shape"], row["preset"], row["target"]]


def _head(run: dict[str, Any]) -> Iterator[str]:
    about = run["machine"]
    yield "# Whole models of real sizes"
    yield ""
    commits = sorted({row["commit"] for row in run["rows"]})
    yield (
        f"{about['cpu']}, {about['cores']} cores, {about['memory_bytes'] / GIB:.0f} GiB; "
        f"onnxruntime {about['onnxruntime']}, executorch {about['executorch']}. {about['date']}, commit {', '.join(commits)}; "
        f"{about['minutes']} minutes in the last call, "
        f"other programs kept {about['cores_busy_elsewhere']:.2f} of the cores busy meanwhile. "
        f"DRAM gives two threads {run['dram_bytes_s'] / 1e9:.1f} GB/s at best. "
        "What is measured and how: [docs/benchmarks.md](../../docs/benchmarks.md)."
    )
    yield ""
    if about["cores_busy_elsewhere"] > DISTURBED:
        yield "**A disturbed run: times and verdicts below say little. Repeat it while other programs rest.**"
        yield ""


def _bars(found: list[Verdict]) -> Iterator[str]:
    yield "## Bars"
    yield ""
    yield from _table(
        ["bar", "required", "found", "", "aim"],
        [[one.bar, one.required, one.found, VERDICT[one.reached], one.aim] for one in found],
    )


def _exports(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Export"
    yield ""
    cells = []
    for row in rows:
        if not (found := part(row, "export")):
            continue
        files = found["files"]
        cells.append(
            [
                *_name(row),
                f"{found['seconds']:.0f}",
                f"{found['peak'] / GIB:.2f}",
                f"{found['anonymous'] / GIB:.2f}",
                f"{found['file'] / GIB:.2f}",
                f"{sum(files.values()) / 1e9:.3f}",
                f"{sum(found['experts'].values()) / 1e9:.3f}",
                f"{experts_of_f(found)['all']:.3f}",
                "made while reading" if found["random_source"] else "safetensors",
            ]
        )
    head = [
        "shape",
        "preset",
        "target",
        "seconds",
        "peak RSS, GiB",
        "anonymous",
        "file-backed",
        "files, GB",
        "experts, GB",
    ]
    yield from _table([*head, "of F", "source"], cells)


def _memory(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Opening, and memory"
    yield ""
    yield (
        "Seconds, page cache warm, without checksums; MB of resident memory. “Beyond” is the bar's figure: anonymous memory "
        "after the first token of a text, less what the process had before opening, and less the KV cache of that token, or what "
        "ExecuTorch plans for cache and activations. Later columns are all that the process has: interpreter and libraries (the "
        "column before), KV cache and activations included. ExecuTorch's process has torch in it."
    )
    yield ""
    cells = []
    for row in rows:
        if not (run := part(row, "run")):
            continue
        memory = run["memory"]
        cells.append(
            [
                *_name(row),
                f"{run['open_seconds']:.2f}",
                f"{run['first_text_token_seconds']:.2f}",
                f"{anonymous_beyond(run) / MB:.0f}",
                *(
                    f"{memory[when]['anonymous'] / MB:.0f} + {memory[when]['file'] / MB:.0f}"
                    for when in ("before", "opened", "steady")
                ),
                f"{run['peak_anonymous'] / MB:.0f} + {run['peak_file'] / MB:.0f}",
                f"{run['kv_bytes'] / MB:.0f}",
            ]
        )
    head = [
        "shape",
        "preset",
        "target",
        "open",
        "first token of a text after it",
        "beyond",
        "before opening, anonymous + file",
    ]
    yield from _table([*head, "opened", "after answers", "peak", "KV cache"], cells)


def first_token(rows: list[dict[str, Any]], row: dict[str, Any]) -> tuple[float, float | None]:
    """Seconds to the first token after a picture of 576 tokens, and of 64.

    The second is a sum: 96 positions of text in this model, and a picture in the model whose tower takes 112 pixels.
    """
    run = row["run"]
    small = part(by_name(rows).get((SMALL_TOWER, row["preset"], row["target"])), "run")
    if run["image_tokens"] == SMALL_IMAGE_TOKENS:
        return run["first_token"], run["first_token"]
    return run["first_token"], run["short_first_token"] + small["image"] if small else None


def _speed(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Speed, two threads"
    yield ""
    yield (
        f"Seconds from a question of {TEXT_TOKENS} tokens about a random picture to its first token, all work on the picture "
        "included; tokens a second; MB of weights that a token reads. The limit is what DRAM gave just before and after for "
        f"these bytes. The time for {SMALL_IMAGE_TOKENS} image tokens is a sum: {SMALL_IMAGE_TOKENS + TEXT_TOKENS} positions of "
        "text in this model, and a picture of 112 pixels in a tower of the same size."
    )
    yield ""
    cells = []
    for row in rows:
        if not (run := part(row, "run")) or row["shape"] == SMALL_TOWER:
            continue
        long, short = first_token(rows, row)
        share, size = limit_share(row), row.get("bytes_per_token")
        cells.append(
            [
                *_name(row),
                f"{long:.2f}" + ("" if run["image_tokens"] != SMALL_IMAGE_TOKENS else " (64)"),
                f"{run['image']:.2f}",
                f"{short:.2f}" if short is not None else "",
                f"{run['prefill_tokens_s']:.1f} ({run['prompt_tokens']})",
                f"{1 / run['step_seconds']:.2f}",
                f"{size / MB:.0f}" if size else "",
                f"{dram(run) / size:.2f}" if size else "",
                f"{share:.0%}" if share is not None else "",
            ]
        )
    head = ["shape", "preset", "target", "first token, 576 + 32", "of it the picture", "first token, 64 + 32"]
    yield from _table([*head, "prefill (positions)", "decode", "MB a token", "DRAM limit", "of limit"], cells)


def _llama(found: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> Iterator[str]:
    if not found:
        return
    yield "## Next to llama.cpp"
    yield ""
    yield (
        "A dense decoder of the same shape in Q4_0, the head in 6 bits (llama.cpp's default for tied embeddings), random "
        "weights, two threads, in the same run. A token of ours reads a shared expert in 4 bits and one of the ternary experts "
        "on top. The time of the picture's tower is not in these figures."
    )
    yield ""
    known = by_name(rows)
    cells = []
    for shape, one in found.items():
        if "failure" in one:
            yield f"{shape}: {one['failure']}."
            yield ""
            continue
        cells.append(
            [
                shape, f"llama.cpp {one['release']}, dense Q4_0", f"{one['file_bytes'] / 1e9:.2f}",
                f"{one['prefill_tokens_s']:.1f}", f"{1 / one['step_seconds']:.2f}", f"{one['bytes_per_token'] / MB:.0f}",
                f"{one['bytes_per_token'] / dram(one) / one['step_seconds']:.0%}",
            ]
        )  # fmt: skip
        for target in ("onnx", "executorch"):
            row = known.get((shape, "mobile", target))
            if row and (run := part(row, "run")) and (export := part(row, "export")):
                share = limit_share(row)
                cells.append(
                    [
                        shape, f"ours, mobile, {target}", f"{sum(export['files'].values()) / 1e9:.2f}",
                        f"{run['prefill_tokens_s']:.1f}", f"{1 / run['step_seconds']:.2f}",
                        f"{row['bytes_per_token'] / MB:.0f}", f"{share:.0%}" if share else "",
                    ]
                )  # fmt: skip
    yield from _table(
        ["shape", "", "files, GB", "prefill, tokens/s", "decode, tokens/s", "MB a token", "of DRAM limit"], cells
    )


def _failures(rows: list[dict[str, Any]]) -> Iterator[str]:
    found = [(row, text) for row in rows for text in failures(row)]
    if found:
        yield "## What failed"
        yield ""
        yield from (f"- {' '.join(_name(row))}: {text}" for row, text in found)
        yield ""


def render(run: dict[str, Any], folder: Path) -> str:
    """Writes models.md and models.png of a run; returns the text."""
    rows = run["rows"]
    lines = [*_head(run), *_bars(verdicts(rows, run["dram_bytes_s"])), f"![decode speed and memory]({PICTURE})", ""]
    lines += [*_exports(rows), *_memory(rows), *_speed(rows), *_llama(run["llama_cpp"], rows), *_failures(rows)]
    text = "\n".join(lines).rstrip() + "\n"
    (folder / TABLES).write_text(text, encoding="utf-8")
    draw(rows, folder / PICTURE)
    return text


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Left: decoding beside what DRAM allows. Right: resident memory after answers, both kinds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if part(row, "run") and row["shape"] != SMALL_TOWER]
    if not shown:
        return
    figure, (speed, memory) = plt.subplots(
        1, 2, figsize=(13, 1.6 + 0.32 * len(shown)), sharey=True, layout="constrained"
    )
    places = range(len(shown))
    speed.barh(places, [1 / row["run"]["step_seconds"] for row in shown], color="#4878a8", label="measured")
    limits = [
        (place, dram(row["run"]) / row["bytes_per_token"])
        for place, row in enumerate(shown)
        if "bytes_per_token" in row
    ]
    speed.plot(
        [limit for _, limit in limits], [place for place, _ in limits], "|", color="black", ms=14, mew=2,
        label="DRAM limit of its bytes",
    )  # fmt: skip
    speed.set(xlabel="decode, tokens/s", yticks=list(places))
    speed.set_yticklabels([" ".join(_name(row)) for row in shown])
    speed.invert_yaxis()
    kinds = {kind: [row["run"]["memory"]["steady"][kind] / 1e9 for row in shown] for kind in ("anonymous", "file")}
    memory.barh(places, kinds["anonymous"], color="#b85450", label="anonymous")
    memory.barh(
        places, kinds["file"], left=kinds["anonymous"], color="#d9c48c", label="file-backed (the system may drop it)"
    )
    memory.set(xlabel="resident memory after answers, GB")
    for axes in (speed, memory):
        axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
