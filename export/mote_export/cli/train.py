"""`mote-train RECIPE.yaml`: one stage of MoTE's training, from files to files."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mote_export import __version__
from mote_export.cli.command import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, MIB, sentence, silence_libraries
from mote_runtime.errors import MoteError

if TYPE_CHECKING:
    from mote_export.train.run import Plan

GIB = MIB << 10

EXAMPLES = """\
examples:
  mote-train recipe.yaml --dry-run                what would train, for how many steps, with how much memory
  mote-train recipe.yaml                          train; after an interruption the same command goes on
  mote-train recipe.yaml --strict                 an entry that cannot be used is an error, instead of being left out
  torchrun --nproc-per-node 2 -m mote_export.cli.train recipe.yaml      two processes

A recipe is a YAML file: examples/recipes has one for each stage, docs/training.md explains every name.
exit codes: 0 trained, 1 failed (the last checkpoint stays), 2 wrong usage, 130 interrupted (a checkpoint was saved)
"""


class Interrupt:
    """SIGINT and SIGTERM: the first asks the run to end after its step, any before the run or a second SIGINT ends at once."""

    def __init__(self) -> None:
        self.asked = self.is_training = False

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, _: object) -> None:
        if not self.is_training or (self.asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    is_main = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level if is_main else logging.ERROR, format="mote-train: %(message)s")
    if not arguments.verbose:
        silence_libraries()
    interrupt = Interrupt()
    interrupt.install()
    try:
        return _train(arguments, interrupt, is_main)
    except KeyboardInterrupt:
        print("mote-train: interrupted; what was saved before stays.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if arguments.verbose:
            raise
        print(f"mote-train: {_sentence(error)}", file=sys.stderr)
        return EXIT_FAILURE


def _train(arguments: argparse.Namespace, interrupt: Interrupt, is_main: bool) -> int:
    try:
        from mote_export.train import TrainingStopped
        from mote_export.train.recipe import load_recipe
        from mote_export.train.run import plan, run
        from mote_export.train.run_folder import RunFolder
    except ModuleNotFoundError as error:
        raise MoteError(f"mote-train needs {error.name}, which is not installed: pip install 'mote[train]'") from error
    recipe = load_recipe(arguments.recipe)
    last = RunFolder(recipe.run_folder).last_checkpoint()
    if arguments.resume and last is None:
        raise MoteError(f"--resume is given, but {recipe.run_folder} has no checkpoint to go on from")
    planned = plan(recipe, strict=arguments.strict)
    if is_main:
        _print_plan(planned, last, as_json=arguments.json)
    if arguments.dry_run:
        return EXIT_OK
    interrupt.is_training = True
    try:
        output = run(planned, stop=interrupt)
    except TrainingStopped as stopped:
        if is_main:
            print(
                f"mote-train: interrupted after step {stopped.step} of {stopped.total}, which is saved in {stopped.checkpoint}: "
                f"the same command goes on from there.",
                file=sys.stderr,
            )
        return EXIT_INTERRUPTED
    if is_main:
        print(json.dumps({"output": str(output)}) if arguments.json else f"The model is in {output}.")
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mote-train",
        description="Train a stage of MoTE: the connector, the dense model on instructions, or experts and routers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="model, data, output and settings of the run")
    parser.add_argument("--dry-run", action="store_true", help="read model and data, print the plan, and stop")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="fail if there is no checkpoint to go on from (without it a run goes on where it has one, and starts where not)",
    )
    parser.add_argument("--strict", action="store_true", help="a malformed entry or a broken picture is an error")
    parser.add_argument("--json", action="store_true", help="print the plan and the result as JSON, a line each")
    parser.add_argument("-v", "--verbose", action="store_true", help="log the steps; show tracebacks")
    parser.add_argument("--version", action="version", version=f"mote {__version__}")
    return parser


def _sentence(error: Exception) -> str:
    if not isinstance(error, MoteError):
        return sentence(error, left="the checkpoints that were there stay")
    if "Original Traceback" in str(error):
        # A process that loads data hands on its traceback as text; what was raised there is the last line.
        return str(error).rstrip().splitlines()[-1].partition("Error: ")[2]
    return str(error)


def _print_plan(planned: "Plan", last: Path | None, *, as_json: bool) -> None:
    summary: dict[str, Any] = planned.summary()
    if as_json:
        print(json.dumps({**summary, "resumes_from": None if last is None else str(last)}), flush=True)
        return
    memory = summary["bytes"]
    print(
        f"Stage {summary['stage']}: {summary['trainable']:,} of {summary['parameters']:,} parameters train, in "
        f"{len(planned.trainable)} tensors.\n"
        f"{summary['rows']:,} rows of at most {summary['longest']} tokens, {summary['pictures']:,} with a picture; "
        f"{summary['steps']:,} steps of {summary['batch']} rows ({summary['processes']} processes).\n"
        f"Memory of a process: {sum(memory.values()) / GIB:.2f} GiB (weights {memory['weights'] / GIB:.2f}, gradients "
        f"{memory['gradients'] / GIB:.2f}, optimizer {memory['optimizer'] / GIB:.2f}) and activations.",
        flush=True,
    )
    if last is not None:
        print(f"Going on from {last}.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
