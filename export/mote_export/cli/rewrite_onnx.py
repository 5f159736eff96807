"""`mote-export MODEL.onnx`: an ONNX model of somebody else's, whose ternary weights go into mote's operators."""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mote_export.cli.command import MIB

if TYPE_CHECKING:
    from mote_export.onnx_import import Left, RewriteResult

SUFFIX = ".onnx"
# Options that mean something for an ONNX model, by their names in the parsed arguments; the others are about checkpoints.
MEANINGFUL = {
    "model",
    "output",
    "packing",
    "rtol",
    "no_verify",
    "json",
    "verbose",
    "quantize_activations",
    "ternarize",
    "inputs",
}
ONLY_HERE = {"quantize_activations", "inputs"}
MOST_SHOWN = 12  # rows of nodes; --json has all


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of their own that ONNX models have."""
    group = parser.add_argument_group("ONNX models", "MODEL.onnx: ternary weights are packed, the rest stays as it is.")
    group.add_argument(
        "--quantize-activations",
        action="store_true",
        help="also rewrite products whose activations the graph does not round to 8 bits, as the operators do: this changes "
        "numbers",
    )
    group.add_argument(
        "--ternarize",
        action="store_true",
        help="also rewrite weights that are nearly -1, 0 or 1 times one number, rounded; the report says what that costs (also for "
        "the layers of a BitNet checkpoint)",
    )
    group.add_argument(
        "--inputs",
        type=Path,
        metavar="FILE.npz",
        help="arrays to compare on, by the names of the model's inputs (default: random ones of the declared shapes)",
    )


def check_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace, given: set[str]) -> None:
    """Ends with exit code 2 for options that the kind of MODEL has no use for. given: names of those that were written out."""
    names = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
    if is_onnx(arguments.model):
        useless = sorted(names[name] for name in given - MEANINGFUL)
        if useless:
            parser.error(
                f"{useless[0]} is for checkpoints: {arguments.model} is an ONNX model, of which only ternary weights are rewritten"
            )
        if arguments.no_verify and arguments.inputs:
            parser.error("--inputs is for verification, which --no-verify switches off")
    else:
        useless = sorted(names[name] for name in given & ONLY_HERE)
        if useless:
            parser.error(f"{useless[0]} is for ONNX models, MODEL is {arguments.model}")


def is_onnx(model: Path) -> bool:
    return model.suffix.lower() == SUFFIX


def run(arguments: argparse.Namespace, output: Path) -> "RewriteResult":
    """Rewrites; raises MoteError."""
    from mote_runtime.errors import MoteError

    try:
        from mote_export.onnx_import import NothingToRewriteError, RewriteOptions, rewrite_onnx
    except ModuleNotFoundError as error:
        raise MoteError(
            f"mote-export needs {error.name}, which is not installed: pip install 'mote[export]'."
        ) from error
    options = RewriteOptions(
        arguments.packing,
        quantize_activations=arguments.quantize_activations,
        ternarize=arguments.ternarize,
    )
    inputs = None if arguments.inputs is None else _read_inputs(arguments.inputs)
    try:
        return rewrite_onnx(
            arguments.model,
            output,
            options,
            rtol=arguments.rtol,
            verify=not arguments.no_verify,
            inputs=inputs,
            progress=not arguments.json,
        )
    except NothingToRewriteError as error:
        if error.left and not arguments.json:
            from rich.console import Console

            _print_left(Console(stderr=True, markup=False), error.left)
        raise


def _read_inputs(path: Path) -> dict[str, Any]:
    import numpy as np

    from mote_runtime.errors import MoteError

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, AttributeError, TypeError, EOFError) as error:
        raise MoteError(f"{path} is not a .npz file of arrays") from error


def report(result: "RewriteResult", *, as_json: bool) -> int:
    """The file is in place by now; what goes wrong here is only about the report."""
    try:
        if as_json:
            print(json.dumps({**asdict(result), "file": str(result.file)}, indent=2))
        else:
            _print(result)
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        print(
            f"mote-export: {result.file} complete, but the report cannot be printed: {error.strerror}.", file=sys.stderr
        )
        return 1
    return 0


def _print(result: "RewriteResult") -> None:
    from rich.console import Console
    from rich.table import Table

    from mote_export.onnx_import.read import printable

    console = Console(markup=False)  # names of a file are no markup
    table = Table(title="Rewritten", title_justify="left")
    for name in ("operator", "node", "weights", "MiB before", "MiB after", "activations", "relative error"):
        table.add_column(name, justify="right" if name.startswith(("MiB", "rel")) else "left", overflow="fold")
    for item in result.rewritten[:MOST_SHOWN]:
        table.add_row(
            item.op,
            printable(item.name),
            " x ".join(map(str, item.shape)),
            f"{item.bytes_before / MIB:.3f}",
            f"{item.bytes_after / MIB:.3f}",
            {"absorbed": "rounded by the graph", "repeated": "rounded by the graph, too", "new": "rounded from now on"}[
                item.activations
            ],
            "0" if item.error == 0 else f"{item.error:.2g}",
        )
    if len(result.rewritten) > MOST_SHOWN:
        table.add_row("...", f"{len(result.rewritten) - MOST_SHOWN} more, see --json", "", "", "", "", "")
    console.print(table)
    if result.left:
        _print_left(console, result.left)
    console.print(
        f"{result.file}: {result.bytes_after / MIB:.2f} MiB with its data, {result.bytes_before / MIB:.2f} MiB before.",
        soft_wrap=True,
    )
    if result.comparison is None:
        console.print("Not compared with the model itself (--no-verify).")
    else:
        compared = result.comparison
        console.print(
            f"Compared with the model itself in ONNX Runtime: {len(compared.differences)} outputs, the greatest difference is "
            f"{compared.greatest:.2g} of an output's standard deviation (--rtol {compared.rtol:g}).",
            soft_wrap=True,
        )
    console.print(
        "The file needs mote's plugin: mote_runtime.get_library_path('onnxruntime') is its path.", soft_wrap=True
    )


def _print_left(console: Any, left: "Sequence[Left]") -> None:
    from rich.table import Table

    from mote_export.onnx_import.read import printable

    table = Table(title="Left as they are", title_justify="left")
    for name in ("nodes", "the first", "why"):
        table.add_column(name, justify="right" if name == "nodes" else "left", overflow="fold")
    counts = Counter(item.reason for item in left)
    first = {item.reason: f"{item.op} {item.name}" for item in reversed(left)}
    for reason, count in counts.most_common(MOST_SHOWN):
        table.add_row(str(count), printable(first[reason]), printable(reason))
    if len(counts) > MOST_SHOWN:
        table.add_row("", f"{len(counts) - MOST_SHOWN} more reasons, see --json", "")
    console.print(table)
