"""What an export has in memory, stage by stage: opened, after a short answer, after a long prompt; and with a limit on all of it.

    python benchmarks/memory.py FILE --make
    python benchmarks/memory.py DIR [--runtime executorch] [--prompt 4000] [--limit 60]

The first writes a checkpoint of random weights, 590 MB: 4 layers of hidden 1024, intermediate 4096, 4 experts. DIR is any export.
Memory is of the whole process, Python and the runtime's libraries included; the row "imported" is what these take. The limit is a
share of the files, in percent, and counts pages of files as well; it needs a writable /sys/fs/cgroup.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mote_runtime import MoteError, load
from mote_runtime.backends import import_backend
from mote_runtime.manifest import Manifest
from mote_runtime.profile.host import find_exports
from mote_runtime.profile.memory import mapped_files, resident_bytes
from mote_runtime.profile.memory_limit import drop_from_memory, run_limited

MIB = 1 << 20
SHORT = 16
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def make(path: Path) -> None:
    """Writes the checkpoint."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from tiny import tiny_text_checkpoint, tiny_text_config
    from transformers import Qwen2Config

    from mote_export.checkpoint import save_model_pt

    config = tiny_text_config(
        Qwen2Config, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=128, vocab_size=32000, max_position_embeddings=4096,
    )  # fmt: skip
    checkpoint = tiny_text_checkpoint(config, num_experts=4)
    save_model_pt(path, checkpoint.model.bfloat16(), checkpoint.files)


def work(folder: Path, threads: int, prompt: int) -> None:
    """Goes through the stages and prints a JSON object after each."""
    import_backend(Manifest.read(folder).target)
    _say("imported", 0.0, folder)
    start = time.perf_counter()
    with load(folder, threads=threads) as pipeline:
        _say("opened", time.perf_counter() - start, folder)
        vocab = min(pipeline.manifest.model.vocab_size, 250)
        for length in (SHORT, prompt):
            start = time.perf_counter()
            logits = pipeline.step_logits([index * 7 % vocab for index in range(length)], [1, 2, 3])
            _say(f"prompt of {length}", time.perf_counter() - start, folder, logits.argmax(axis=1).tolist())


def _say(stage: str, seconds: float, folder: Path, tokens: Sequence[int] = ()) -> None:
    anonymous, file = resident_bytes()
    peak = _PEAK.search(Path("/proc/self/status").read_text())
    mapped = asdict(mapped_files(folder))
    report = {"stage": stage, "seconds": seconds, "anonymous": anonymous, "file": file, "tokens": list(tokens)}
    print(json.dumps(report | {"peak": int(peak[1]) << 10 if peak else 0, "mapped": mapped}), flush=True)


def command(folder: Path, arguments: argparse.Namespace) -> list[str]:
    options = ["--threads", str(arguments.threads), "--prompt", str(arguments.prompt)]
    return [sys.executable, __file__, str(folder), "--worker", *options]


def table(title: str, lines: str) -> tuple[Table, list[Any]]:
    reports = [json.loads(line) for line in lines.splitlines()]
    columns = ("stage", "seconds", "anonymous", "of files", "model mapped", "resident of it", "written to", "peak")
    result = Table(*columns, title=title)
    for each in reports:
        mapped = each["mapped"]
        sizes = (each["anonymous"], each["file"], mapped["size"], mapped["resident"], mapped["anonymous"], each["peak"])
        result.add_row(each["stage"], f"{each['seconds']:.2f}", *(f"{size / MIB:.0f}" for size in sizes))
    return result, [each["tokens"] for each in reports if each["tokens"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--make", action="store_true", help="write the checkpoint to DIR, a file, and end")
    parser.add_argument("--runtime", help="default: all that DIR was exported for")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens of the long prompt")
    parser.add_argument("--limit", type=float, metavar="PERCENT", help="of the files' size, for a second run")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.folder)
        return
    if arguments.worker:
        work(arguments.folder, arguments.threads, arguments.prompt)
        return
    console = Console(width=120)
    for runtime, folder in find_exports(arguments.folder, arguments.runtime).items():
        files = [path for path in folder.iterdir() if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        done = subprocess.run(command(folder, arguments), stdout=subprocess.PIPE, text=True, check=True)
        rows, tokens = table(f"{runtime}, files of {size / MIB:.0f} MiB; memory in MiB", done.stdout)
        console.print(rows)
        if arguments.limit is None:
            continue
        drop_from_memory(files)
        limited = run_limited(command(folder, arguments), round(size * arguments.limit / 100), cold=files)
        rows, again = table(f"the same with {limited.limit_bytes / MIB:.0f} MiB", limited.stdout)
        console.print(rows)
        end = "ended by the system" if limited.killed else f"ended with {limited.returncode}"
        console.print(f"{end}; same tokens: {again == tokens}; at most {limited.peak_bytes / MIB:.0f} MiB")


if __name__ == "__main__":
    try:
        main()
    except MoteError as error:
        sys.exit(f"memory.py: {error}")
