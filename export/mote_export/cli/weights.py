"""The options that say how weights are stored, one by one, as a preset, or by the memory there is."""

import argparse
import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from mote_export.defaults import (
    BUDGET_STEPS,
    DEFAULT_EMBEDDING,
    DEFAULT_FULL_EXPERTS,
    DEFAULT_KV_CACHE,
    DEFAULT_LINEAR,
    DEFAULT_PACKING,
    DEFAULT_QUANTIZER,
    DEFAULT_SHARED_EXPERT,
    DEFAULT_SHARED_GROUP_SIZE,
    DEFAULT_VISION,
    EXPERT_FORMATS,
    LINEAR_FORMATS,
    PRESETS,
    QUANTIZERS,
)
from mote_runtime.manifest import GROUPED_SHARED_EXPERT, KV_CACHES, PACKINGS, SHARED_EXPERTS, SHARED_GROUP_SIZES

if TYPE_CHECKING:
    from mote_export.budget import Budget
    from mote_export.passes import PackOptions

GROUPED = {"int4", "int3"}
OUTSIDE_OF_THE_LAYER = ("linear", "embedding", "vision", "full_experts")
UNITS = {"": 1, **{f"{letter}B": 1000**power for power, letter in enumerate("KMG", 1)}}
UNITS |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMG", 1)}


def add_weight_options(parser: argparse.ArgumentParser) -> None:
    """The group of options that say how weights are stored."""
    weights = parser.add_argument_group("stored weights", "How many bits a weight takes, in the files and in memory.")
    whole = weights.add_mutually_exclusive_group()
    whole.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="the whole model at once: "
        + "; ".join(f"{name} is {_spelled(options)}" for name, options in PRESETS.items())
        + ". Options beside it replace its own (default: none, each option has a default of its own)",
    )
    whole.add_argument(
        "--memory-budget",
        type=_bytes,
        metavar="SIZE",
        help="the most exact preset whose weights and KV cache fit into SIZE, such as 3GB or 2.5GiB",
    )
    weights.add_argument(
        "--packing",
        choices=PACKINGS,
        default=DEFAULT_PACKING,
        help="ternary experts. Both store them without loss and give the same answers: 2bit is quicker to unpack, 1.6bit takes a "
        "fifth less memory (default: %(default)s)",
    )
    weights.add_argument(
        "--shared-expert",
        choices=SHARED_EXPERTS,
        default=DEFAULT_SHARED_EXPERT,
        help="the shared expert, read for every token, so fewer bytes are also faster answers. float32 (32 bits) is run by the "
        "runtime's own layers and changes nothing; bf16 (16 bits) changes nothing if the checkpoint is bfloat16; int8 (8 bits) "
        "rounds a little and int4 (4 bits) visibly, and both round activations to 8 bits (default: %(default)s)",
    )
    weights.add_argument(
        "--shared-group-size",
        type=int,
        choices=SHARED_GROUP_SIZES,
        default=DEFAULT_SHARED_GROUP_SIZE,
        help="weights of int4 that share a scale: smaller groups are closer to the checkpoint and take more bytes, 16 bits a "
        "group (default: %(default)s)",
    )
    weights.add_argument(
        "--linear",
        choices=LINEAR_FORMATS,
        default=DEFAULT_LINEAR,
        help="attention's projections, dense FFNs of the decoder, the projector and the output layer. float32 is run by the "
        "runtime's own operators, as all are with --portable; bf16, int8 and int4 by one of mote that reads them where the file is "
        "mapped, and int8 and int4 round activations to 8 bits as well (default: %(default)s)",
    )
    weights.add_argument(
        "--embedding",
        choices=LINEAR_FORMATS,
        default=DEFAULT_EMBEDDING,
        help="the embedding of tokens (default: %(default)s)",
    )
    weights.add_argument(
        "--vision",
        choices=LINEAR_FORMATS,
        default=DEFAULT_VISION,
        help="the linear layers of the vision tower, as --linear (default: %(default)s)",
    )
    weights.add_argument(
        "--full-experts",
        choices=EXPERT_FORMATS,
        default=DEFAULT_FULL_EXPERTS,
        help="routed experts of a checkpoint that has them in full precision (MoE-LLaVA); 3-bit codes are stored in 4 bits "
        "(default: %(default)s)",
    )
    weights.add_argument(
        "--linear-group-size",
        type=int,
        choices=SHARED_GROUP_SIZES,
        default=DEFAULT_SHARED_GROUP_SIZE,
        help="as --shared-group-size, of --linear, --embedding, --vision and --full-experts; the runtimes' own operators take a "
        "smaller one, or a scale a row, where it does not divide the inputs (default: %(default)s)",
    )
    weights.add_argument(
        "--quantizer",
        choices=QUANTIZERS,
        default=DEFAULT_QUANTIZER,
        help="how the scales of all integer weights are chosen: rtn takes the greatest weight for the greatest code, hqq (from "
        "torchao) makes the squared rounding error small (default: %(default)s)",
    )
    weights.add_argument(
        "--kv-cache",
        choices=KV_CACHES,
        default=DEFAULT_KV_CACHE,
        help="keys and values of the whole context. int8 takes a quarter of the memory, for --target onnx alone; its scales are "
        "calibrated on the questions of --sample and on built-in ones (default: %(default)s)",
    )


def check_weight_options(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, written: Collection[str]
) -> None:
    """Puts a preset's values in the place of options that are not written out, and ends where options contradict each other.

    Args:
        written: names of the arguments that the user gave.
    """
    for name, value in PRESETS.get(arguments.preset, {}).items():
        if name not in written:
            setattr(arguments, name, value)
    chosen = {name for step in BUDGET_STEPS.values() for name in step} & set(written)
    if arguments.memory_budget is not None and chosen:
        parser.error(f"--memory-budget chooses --{min(chosen).replace('_', '-')}: leave one of them out")
    if arguments.memory_budget is not None:
        return
    if "shared_group_size" in written and arguments.shared_expert != GROUPED_SHARED_EXPERT:
        parser.error(
            f"--shared-group-size is for --shared-expert {GROUPED_SHARED_EXPERT}; {arguments.shared_expert} has no groups"
        )
    outside = {getattr(arguments, name) for name in OUTSIDE_OF_THE_LAYER}
    if "linear_group_size" in written and not GROUPED & outside:
        parser.error("--linear-group-size is for int4 and int3 of --linear, --embedding, --vision and --full-experts")
    if arguments.quantizer != DEFAULT_QUANTIZER and not any(
        form.startswith("int") for form in (arguments.shared_expert, *outside)
    ):
        parser.error(
            "--quantizer is for integer weights: --shared-expert, --linear, --embedding, --vision or --full-experts as int8 or int4"
        )


def weight_options(arguments: argparse.Namespace) -> "PackOptions | Budget":
    """What `exporter.export` takes, of checked arguments."""
    from mote_export.budget import Budget
    from mote_export.passes import PackOptions

    pack = PackOptions(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(PackOptions)})
    return pack if arguments.memory_budget is None else Budget.of(arguments.memory_budget, pack)


def _spelled(options: Mapping[str, str | int]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())


def _bytes(text: str) -> int:
    """For argparse: a size such as 3GB, 512MiB or 1000000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", text)
    if match is None or not (size := round(float(match[1]) * UNITS[match[2] or ""])):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 3GB, 2.5GiB or 800MB")
    return size
