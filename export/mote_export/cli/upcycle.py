"""`mote-upcycle BASE`: a dense transformers model goes in, a MoTE checkpoint to be trained comes out."""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mote_export import __version__
from mote_export.cli.command import EXIT_FAILURE, EXIT_OK, MIB, attempt, positive
from mote_export.defaults import DEFAULT_SHARED_GROUP_SIZE

if TYPE_CHECKING:
    from mote_export.upcycle_folder import UpcycleResult

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
TERNARY_SHARED_BITS = {"ternary": 2.0, "none": 0.0}  # of the ablations, which mote-export does not take

EXAMPLES = """\
examples:
  mote-upcycle Qwen2.5-0.5B                      MoTE's layer in every layer, 4 experts, into ./Qwen2.5-0.5B-mote
  mote-upcycle llava -o mote --num-experts 8 --layers every-other
  mote-upcycle llava -o moe-llava --experts full --layers every-other     MoE-LLaVA's layer, the baseline
  mote-upcycle Qwen2.5-0.5B --dtype bf16 --json

BASE is a folder of save_pretrained with safetensors: a causal language model, or LLaVA over one, whose decoder has bias-free
SiLU-gated MLPs. The result is to be trained (mote-train): its ternary experts are roundings that no training has mended yet.
exit codes: 0, 1 failed (nothing was written), 2 wrong usage, 130 interrupted
"""


@dataclass(frozen=True)
class Row:
    """Bytes of the experts, by the paper's formulas in BF16 and as they are in files; None where these are not known beforehand."""

    name: str
    formula: int
    bytes: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    code, result = attempt("mote-upcycle", lambda: _upcycle(arguments), verbose=arguments.verbose)
    return code if result is None else _report(result, as_json=arguments.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mote-upcycle",
        description="Make a MoTE checkpoint (mixture of ternary experts) of a dense transformers model: every routed expert starts "
        "as a copy of the pretrained FFN, which stays as the shared expert. Tensors are copied one by one: a base larger than "
        "memory works.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="a dense transformers folder with safetensors")
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", type=Path, metavar="DIR", help="absent or empty folder (default: BASE-mote)")
    output.add_argument(
        "--dtype",
        choices=("keep", "bf16", "float32"),
        default="keep",
        help="of the weights in the result (default: %(default)s, as in the base)",
    )
    output.add_argument(
        "--max-shard-size",
        type=_size,
        default=2 * UNITS["GB"],
        metavar="SIZE",
        help="of a file of weights (default: 2GB)",
    )
    output.add_argument("--json", action="store_true", help="print the report as JSON")
    _add_layer_options(parser)
    common = parser.add_argument_group("messages")
    common.add_argument("-v", "--verbose", action="store_true", help="log the steps; show tracebacks")
    common.add_argument("--version", action="version", version=f"mote {__version__}")
    return parser


def _add_layer_options(parser: argparse.ArgumentParser) -> None:
    layer = parser.add_argument_group("layer")
    layer.add_argument(
        "--num-experts", type=positive, default=4, metavar="E", help="routed experts of a layer (default: %(default)s)"
    )
    layer.add_argument(
        "--top-k", type=positive, metavar="K", help="experts computed for a token (default: 1; 2 with --experts full)"
    )
    layer.add_argument(
        "--layers",
        type=_layers,
        default="all",
        metavar="all|every-other|0,2,5",
        help="decoder layers that get experts; every-other is 0, 2, 4, ... (default: %(default)s)",
    )
    layer.add_argument(
        "--experts",
        choices=("ternary", "full"),
        default="ternary",
        help="routed experts: MoTE's, or MoE-LLaVA's in full precision, the baseline (default: %(default)s)",
    )
    layer.add_argument(
        "--shared-expert",
        choices=("full", "ternary", "none"),
        help="the FFN that every token passes; other than full are ablations (default: full; none with --experts full)",
    )
    layer.add_argument(
        "--normalize-topk",
        action=argparse.BooleanOptionalAction,
        help="divide the chosen experts' probabilities by their sum (default: with --experts full)",
    )
    layer.add_argument(
        "--init",
        choices=("ffn", "random"),
        default="ffn",
        help="what routed experts start as: the pretrained FFN, or random weights, an ablation (default: %(default)s)",
    )
    layer.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of routers and random experts (default: %(default)s)"
    )


def _layers(text: str) -> str | tuple[int, ...]:
    if text in ("all", "every-other"):
        return text
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not all, every-other or indices of layers such as 0,2,5")
    return tuple(int(index) for index in text.split(","))


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15})([KMG]B)?", text.upper())
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB or 2GB")
    return int(match[1]) * UNITS[match[2] or ""]


def _upcycle(arguments: argparse.Namespace) -> "UpcycleResult":
    from mote_runtime.errors import MoteError

    try:
        from mote_export.upcycle_folder import UpcycleOptions, upcycle_folder
    except ModuleNotFoundError as error:
        raise MoteError(
            f"mote-upcycle needs {error.name}, which is not installed: pip install 'mote[export]'"
        ) from error
    options = UpcycleOptions(
        num_experts=arguments.num_experts,
        top_k=arguments.top_k,
        layers=arguments.layers,
        experts=arguments.experts,
        shared_expert=arguments.shared_expert,
        normalize_topk=arguments.normalize_topk,
        init=arguments.init,
        dtype=arguments.dtype,
        seed=arguments.seed,
        max_shard_bytes=arguments.max_shard_size,
    )
    output = arguments.output or Path(f"{arguments.base.resolve().name}-mote")
    return upcycle_folder(arguments.base, output, options)


def memory_rows(result: "UpcycleResult") -> list[Row]:
    """What the experts take before up-cycling, now, and once they are quantized."""
    from mote_export.memory import DecoderSizes, full_precision_bytes, memory_table, mote_bytes

    settings, parameters = result.settings, result.base_experts.parameters
    experts = settings.num_experts
    held = experts + (settings.shared_expert != "none")
    rows = [
        Row("dense, the base's FFNs", full_precision_bytes(parameters, 1), result.base_experts.bytes),
        Row("this checkpoint, to be trained", full_precision_bytes(parameters, held), result.experts.bytes),
    ]
    if settings.experts == "ternary" and not settings.is_mote:
        formula = mote_bytes(parameters, experts, TERNARY_SHARED_BITS[settings.shared_expert])
        return [*rows, Row("quantized, experts in 2 bits", formula, None)]
    sizes = DecoderSizes.from_config(result.config, str(result.folder))
    kind = "MoTE, " if settings.is_mote else "MoE-LLaVA, "
    table = memory_table(sizes, experts, DEFAULT_SHARED_GROUP_SIZE)
    return rows + [
        Row(f"quantized, {row.name.removeprefix(kind)}", row.formula, row.exported)
        for row in table
        if row.name.startswith(kind)
    ]


def _report(result: "UpcycleResult", *, as_json: bool) -> int:
    """The folder is in place by now; what goes wrong here is only about the report."""
    try:
        rows = memory_rows(result)
        if as_json:
            content = asdict(result) | {"folder": str(result.folder), "memory": [asdict(row) for row in rows]}
            print(json.dumps(content, indent=2))
        else:
            _print_report(result, rows)
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stdout.close()  # or the interpreter tries once more at exit
        print(
            f"mote-upcycle: {result.folder} complete, but the report cannot be printed: {error.strerror}.",
            file=sys.stderr,
        )
        return EXIT_FAILURE
    return EXIT_OK


def _print_report(result: "UpcycleResult", rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    settings = result.settings
    table = Table(
        title=f"Memory of the experts: {settings.num_experts} {settings.experts}, top-{settings.top_k}, shared expert "
        f"{settings.shared_expert}, in {len(settings.layers)} layers; MiB",
        title_justify="left",
    )
    table.add_column("")
    for column in ("formula", "own bytes"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row.name, f"{row.formula / MIB:.2f}", "" if row.bytes is None else f"{row.bytes / MIB:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"\n[bold]{result.config['architectures'][0]}[/bold]: {result.folder} ({sum(result.files.values()) / MIB:.2f} MiB in "
        f"{len(result.files)} files, {result.model.parameters:,} parameters; the base has {result.base.parameters:,} in "
        f"{result.base.bytes / MIB:.2f} MiB)",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
