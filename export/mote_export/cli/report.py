"""`mote-report CONFIG|CHECKPOINT`: what the experts of a model take, before a weight of it is there."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mote_export import __version__
from mote_export.cli.command import EXIT_FAILURE, EXIT_OK, MIB, positive, silence_libraries
from mote_export.defaults import DEFAULT_SHARED_GROUP_SIZE
from mote_export.json_file import read_json
from mote_runtime.errors import MoteError
from mote_runtime.manifest import KV_CACHES, MAX_EXPERTS, SHARED_GROUP_SIZES

if TYPE_CHECKING:
    from mote_export.memory import DecoderSizes, MemoryRow

DEFAULT_EXPERTS = 4  # of the paper

EXAMPLES = """\
examples:
  mote-report config.json                          of any transformers model with gated feed-forward layers, 4 experts
  mote-report Qwen2.5-3B/ --num-experts 16
  mote-report model.pt                             of a MoTE checkpoint, with its own number of experts
  mote-report config.json --layers every-other     experts in every second layer, as MoE-LLaVA has them
  mote-report config.json --json

"formula" is the experts' memory as the MoTE paper counts it, "exported" their bytes in an export with padding, scales and
routers, "decoder" the formula and the rest of the decoder's layers in BF16, which the paper calls non-embedding memory.
exit codes: 0, 1 failed, 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if not arguments.verbose:
        silence_libraries()
    try:
        sizes, experts, rows = _report(arguments)
    except MoteError as error:
        if arguments.verbose:
            raise
        print(f"mote-report: {str(error).rstrip('.')}.", file=sys.stderr)
        return EXIT_FAILURE
    if arguments.json:
        print(
            json.dumps(
                {
                    "sizes": asdict(sizes),
                    "num_experts": experts,
                    "rows": [asdict(row) for row in rows],
                    "kv_cache_bytes_per_position": {form: sizes.kv_cache_bytes(form) for form in KV_CACHES},
                },
                indent=2,
            )
        )
    else:
        _print(sizes, experts, rows)
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mote-report",
        description="Print what a model's experts take: dense, as MoE-LLaVA, and as MoTE in each way that mote stores them. "
        "Needs no weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", type=Path, metavar="CONFIG|CHECKPOINT", help="config.json, a folder that has one, or a model.pt"
    )
    parser.add_argument(
        "--num-experts",
        type=positive,
        metavar="E",
        help=f"routed experts of a layer (default: the model's own, else {DEFAULT_EXPERTS})",
    )
    parser.add_argument(
        "--layers",
        metavar="all|every-other|N",
        help="layers that have experts, N for their number (default: the model's own, else all)",
    )
    parser.add_argument(
        "--shared-group-size",
        type=int,
        choices=SHARED_GROUP_SIZES,
        default=DEFAULT_SHARED_GROUP_SIZE,
        help="weights of an INT4 shared expert with a scale of their own (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print bytes as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    parser.add_argument("--version", action="version", version=f"mote {__version__}")
    return parser


def _report(arguments: argparse.Namespace) -> "tuple[DecoderSizes, int, list[MemoryRow]]":
    try:
        from mote_export.memory import DecoderSizes, memory_table
    except ModuleNotFoundError as error:
        raise MoteError(
            f"mote-report needs {error.name}, which is not installed: pip install 'mote[export]'"
        ) from error
    config = _read_config(arguments.model)
    moe = config.get("moe")
    own = moe.get("num_experts") if isinstance(moe, Mapping) else None
    own = own[0] if isinstance(own, list) and own else own  # MoE-LLaVA has a list, an entry a layer
    experts = arguments.num_experts or (own if type(own) is int else DEFAULT_EXPERTS)
    if not 1 <= experts <= MAX_EXPERTS:
        raise MoteError(f"the number of experts is {experts}, expected 1 to {MAX_EXPERTS}")
    source = str(arguments.model)
    depth = DecoderSizes.from_config(config, source, layers=1).num_hidden_layers
    sizes = DecoderSizes.from_config(config, source, _layers(arguments.layers, depth))
    return sizes, experts, memory_table(sizes, experts, arguments.shared_group_size)


def _layers(text: str | None, depth: int) -> int | None:
    if text is None:
        return None
    if text == "every-other":
        return (depth + 1) // 2
    if text == "all":
        return depth
    if not text.isdecimal():
        raise MoteError(f"--layers is {text!r}, expected all, every-other or a number")
    return int(text)


def _read_config(path: Path) -> Mapping[str, Any]:
    if path.is_file() and path.suffix != ".json":
        from mote_export.checkpoint.pt import read_config

        return read_config(path)
    return read_json(path / "config.json" if path.is_dir() else path, "a model's configuration")


def _print(sizes: "DecoderSizes", experts: int, rows: "Sequence[MemoryRow]") -> None:
    from rich.console import Console
    from rich.table import Table

    from mote_export.memory import GIB

    unit, name = (GIB, "GiB") if rows[0].formula >= GIB // 4 else (MIB, "MiB")
    table = Table(
        title=f"{experts} experts in {sizes.layers} of {sizes.num_hidden_layers} layers, {sizes.hidden_size} x "
        f"{sizes.intermediate_size}; {name}",
        title_justify="left",
    )
    table.add_column("")
    for column in ("formula", "exported", "decoder"):
        table.add_column(column, justify="right")
    for row in rows:
        exported = "" if row.exported is None else f"{row.exported / unit:.2f}"
        table.add_row(row.name, f"{row.formula / unit:.2f}", exported, f"{row.decoder / unit:.2f}")
    console = Console()
    console.print(table)
    cache = ", ".join(f"{sizes.kv_cache_bytes(form):,} in {form}" for form in KV_CACHES)
    console.print(f"KV cache, bytes a position: {cache}.", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
