"""`mote-export MODEL`: a trained checkpoint goes in, a folder that a phone's runtime opens comes out."""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mote_export import __version__
from mote_export.cli import rewrite_onnx
from mote_export.cli.command import EXIT_FAILURE, EXIT_OK, MIB, attempt, positive
from mote_export.cli.weights import add_weight_options, check_weight_options, weight_options
from mote_export.defaults import (
    DEFAULT_CONTEXT,
    DEFAULT_KV_CACHE,
    DEFAULT_OPSET,
    DEFAULT_RTOL,
    OPSETS,
)

if TYPE_CHECKING:
    from rich.console import Console

    from mote_export.exporter import ExportResult
    from mote_export.report import ExpertMemory

TARGET_NAMES = ("onnx", "executorch")  # of mote_export.targets, known here so that --help needs no torch
NO_IMAGE = "-"  # of a sample

EXAMPLES = """\
examples:
  mote-export model.pt                            both targets, into ./model-export/onnx and ./model-export/executorch
  mote-export model.pt --target onnx -o phone     ONNX Runtime only, into ./phone
  mote-export model.pt --shared-expert int4 --packing 1.6bit      the smallest files
  mote-export model.pt --sample cat.png "What is this?"   verify on your own picture, too
  mote-export model.onnx                          pack the ternary weights of an ONNX model, into ./model-export/model.onnx

exit codes: 0 exported and verified (unless --no-verify), 1 failed (nothing was written), 2 wrong usage, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    rewrite_onnx.check_options(parser, arguments, _written_out(argv))
    if arguments.no_verify and arguments.sample and arguments.kv_cache == DEFAULT_KV_CACHE:
        parser.error("--sample is for verification, which --no-verify switches off, and for --kv-cache int8")
    check_weight_options(parser, arguments, _written_out(argv))
    if rewrite_onnx.is_onnx(arguments.model):
        code, rewritten = attempt(
            "mote-export",
            lambda: rewrite_onnx.run(arguments, arguments.output or default_output(arguments.model)),
            verbose=arguments.verbose,
        )
        return code if rewritten is None else rewrite_onnx.report(rewritten, as_json=arguments.json)
    code, results = attempt("mote-export", lambda: _export(arguments), verbose=arguments.verbose)
    return code if results is None else _report(results, as_json=arguments.json)


def _written_out(argv: Sequence[str] | None) -> set[str]:
    """The names of the arguments that are there, as opposed to those that have their defaults."""
    parser = _parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv)))


def _export(arguments: argparse.Namespace) -> "list[ExportResult]":
    from mote_runtime.errors import MoteError

    try:
        from mote_export.exporter import export
        from mote_export.verify import Sample
    except ModuleNotFoundError as error:
        raise MoteError(
            f"mote-export needs {error.name}, which is not installed: pip install 'mote[export]'."
        ) from error
    targets = TARGET_NAMES if arguments.target == "all" else (arguments.target,)
    return export(
        arguments.model,
        arguments.output or default_output(arguments.model),
        targets,
        context_length=arguments.context_length,
        opset=arguments.opset,
        rtol=arguments.rtol,
        verify=not arguments.no_verify,
        samples=[Sample(prompt, None if image == NO_IMAGE else Path(image)) for image, prompt in arguments.sample],
        portable=arguments.portable,
        vision_tower=arguments.vision_tower,
        pack=weight_options(arguments),
    )


def default_output(model: Path) -> Path:
    """NAME-export in the current folder, for NAME.pt or a folder NAME."""
    resolved = model.resolve()
    return Path(f"{resolved.name if resolved.is_dir() else resolved.stem}-export")


def _report(results: "Sequence[ExportResult]", *, as_json: bool) -> int:
    """The export is in place by now; what goes wrong here is only about the report."""
    try:
        if as_json:
            print(json.dumps([{**asdict(result), "folder": str(result.folder)} for result in results], indent=2))
        else:
            _print_report(results)
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stdout.close()  # or the interpreter tries once more at exit
        folders = ", ".join(str(result.folder) for result in results)
        print(f"mote-export: {folders} complete, but the report cannot be printed: {error.strerror}.", file=sys.stderr)
        return EXIT_FAILURE
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mote-export",
        description="Export a MoTE checkpoint (mixture of ternary experts) for on-device inference. The experts of a layer become "
        "one operator with packed weights; every target is run and compared with torch before it is put in place.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="model.pt, a folder of save_pretrained, of MoE-LLaVA or of BitNet, or a model.onnx",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="absent or empty folder (default: MODEL-export)"
    )
    output.add_argument(
        "--target",
        choices=(*TARGET_NAMES, "all"),
        default="all",
        help="runtime to export for; 'all' writes DIR/onnx and DIR/executorch",
    )
    output.add_argument(
        "--portable",
        action="store_true",
        help="write the experts in the runtime's own operators, so that the files run with no plugin, slowly and with more memory; "
        "an ONNX file keeps the operators' nodes and is fast where the plugin is registered",
    )
    output.add_argument("--json", action="store_true", help="print the report as JSON")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--context-length",
        type=positive,
        metavar="N",
        help=f"positions in the KV cache (default: the model's, at most {DEFAULT_CONTEXT})",
    )
    model.add_argument(
        "--opset",
        type=int,
        default=DEFAULT_OPSET,
        choices=OPSETS,
        metavar=f"{OPSETS[0]}..{OPSETS[-1]}",
        help="ONNX operator set (default: %(default)s)",
    )
    model.add_argument(
        "--vision-tower",
        type=Path,
        metavar="DIR",
        help="a MoE-LLaVA checkpoint's vision tower, a transformers folder of CLIP or SigLIP, where it is not in the checkpoint",
    )
    add_weight_options(parser)
    rewrite_onnx.add_options(parser)
    check = parser.add_argument_group("verification")
    check.add_argument(
        "--rtol",
        type=_tolerance,
        default=DEFAULT_RTOL,
        help="greatest root mean square difference of the logits from torch's, in their standard deviations (default: %(default)s)",
    )
    check.add_argument(
        "--sample",
        nargs=2,
        action="append",
        default=[],
        metavar=("IMAGE", "PROMPT"),
        help="also compare on this question, and calibrate --kv-cache int8 on it (repeatable); IMAGE is - for a question without a "
        "picture",
    )
    check.add_argument("--no-verify", action="store_true", help="do not run and compare the export")
    common = parser.add_argument_group("messages")
    common.add_argument("-v", "--verbose", action="store_true", help="log the steps; show tracebacks")
    common.add_argument("--version", action="version", version=f"mote {__version__}")
    return parser


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def _describe_rounding(rounding: float) -> str:
    """What storing did to the shared experts, so that nobody takes a smaller file for the same model."""
    if rounding == 0.0:
        return "The shared experts keep every weight of the checkpoint."
    return (
        f"Storing the shared experts rounds the checkpoint's weights by {rounding:.2%} (root mean square); verification "
        "compares with the rounded ones, and --shared-expert float32 keeps them as they are."
    )


def _describe_baseline(memory: "ExpertMemory") -> str:
    text = f"Storing the routed experts rounds the checkpoint's weights by {memory.routed_rounding:.2%} (root mean square)."
    if memory.packed_codes != memory.packed:
        text += f" Their 3-bit codes are stored in 4 bits each; at 3 bits they would take {memory.packed_codes / MIB:.2f} MiB."
    return text


def _print_report(results: "Sequence[ExportResult]") -> None:
    from rich.console import Console

    console = Console()
    memory = results[0].memory
    if memory.has_experts:
        _print_experts(console, memory)
    else:
        console.print(_describe_ternary(memory), highlight=False)
    _print_targets(console, results)


def _describe_ternary(memory: "ExpertMemory") -> str:
    text = (
        f"Ternary linear layers: {memory.total / MIB:.2f} MiB ({memory.packed_bits:.2f} bits a weight), "
        f"{memory.total / memory.full_precision:.1%} of what they take in BF16."
    )
    if memory.routed_rounding:
        text += f" Some were not ternary, and rounded by {memory.routed_rounding:.2%} (root mean square over all)."
    return text


def _print_experts(console: "Console", memory: "ExpertMemory") -> None:
    from rich.table import Table

    is_baseline = not memory.shared
    table = Table(title="Memory of the experts", title_justify="left")
    table.add_column("")
    table.add_column("MiB", justify="right")
    table.add_column("of full precision", justify="right")
    for label, size in (
        ("full-precision experts (BF16, MoE-LLaVA)", memory.full_precision),
        ("MoTE by the paper's formula (BF16 shared, 2-bit experts)", memory.formula),
        ("this export", memory.total),
        (
            f"    {'routed' if is_baseline else 'ternary'} experts, packed ({memory.packed_bits:.2f} bits a weight)",
            memory.packed,
        ),
        ("    scales and routers", memory.scales_and_routers),
        (f"    shared experts ({memory.shared_bits:.2f} bits a weight)", memory.shared),
    ):
        table.add_row(label, f"{size / MIB:.2f}", f"{size / memory.full_precision:.1%}")
    console.print(table)
    if is_baseline:
        console.print(_describe_baseline(memory), highlight=False)
    else:
        console.print(_describe_rounding(memory.shared_rounding), highlight=False)


def _print_targets(console: "Console", results: "Sequence[ExportResult]") -> None:
    for part in results[0].stored:
        console.print(
            f"{part.part}: {part.parameters:,} weights as {part.format}, {part.bytes / MIB:.2f} MiB with their scales, rounded by "
            f"{part.rounding:.2%} (root mean square).",
            highlight=False,
        )
    if results[0].kv_cache is not None:
        cache = results[0].kv_cache
        console.print(f"KV cache: {cache.format}, {cache.bytes_per_position:,} bytes a position.", highlight=False)
    for result in results:
        console.print(
            f"\n[bold]{result.target}[/bold]: {result.folder} ({sum(result.files.values()) / MIB:.2f} MiB)",
            highlight=False,
        )
        for name, size in result.files.items():
            console.print(f"    {name:24} {size / MIB:10.3f} MiB", highlight=False)
        check = result.verification
        if check is None:
            console.print("    not verified (--no-verify)", highlight=False)
        else:
            console.print(
                f"    verified against torch: {check.greedy_tokens_compared - check.greedy_ties} of "
                f"{check.greedy_tokens_compared} greedy tokens of {check.samples} samples agree, {check.greedy_ties} ties; "
                f"logits differ by at most {check.max_relative_difference:.2g} of their standard deviation (tolerance "
                f"{check.rtol:g}), a single one by {check.max_abs_logit_difference:.2g} of up to {check.max_abs_logit:.3g}",
                highlight=False,
            )
            if check.widened_steps:
                console.print(
                    f"    {check.widened_steps} steps are beyond the tolerance, as rounded activations can move torch's own logits",
                    highlight=False,
                )
