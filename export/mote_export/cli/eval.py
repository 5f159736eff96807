"""`mote-eval CHECKPOINT|EXPORT DATA`: how often a model is right, in torch or in the runtime it was exported for."""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from mote_export import __version__
from mote_export.cli.command import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, positive, sentence, silence_libraries
from mote_export.evaluation import (
    METRICS,
    AnswerFunction,
    Comparison,
    Evaluation,
    QuestionSet,
    Score,
    check_comparable,
    compare,
    evaluate,
    read_predictions,
    read_questions,
    write_predictions,
)
from mote_export.evaluation.results import Question
from mote_export.evaluation.scoring import DEFAULT_METRIC
from mote_runtime.backends import RUNTIMES
from mote_runtime.cli.run import reserved_stdout
from mote_runtime.errors import MoteError
from mote_runtime.manifest import MANIFEST_NAME
from mote_runtime.pipeline import MAX_THREADS, find_export

DEFAULT_MAX_NEW_TOKENS = 32  # VQA's answers are short; a model that runs on is cut off here
DEFAULT_BATCH_SIZE = 64

EXAMPLES = """\
examples:
  mote-eval model.pt questions.json                a checkpoint, in torch
  mote-eval model-export questions.json --runtime executorch
  mote-eval base vqa.jsonl --image-folder coco --metric vqa --limit 500
what did the export change?
  mote-eval model.pt questions.json --predictions torch.jsonl
  mote-eval model-export questions.json --against torch.jsonl

DATA is a JSON list or JSON lines of {"image", "question", "answer", "task"}, or LLaVA's conversations (docs/evaluation.md).
An answer is right if it is one of those accepted, without regard to case, blanks around it and a full stop at its end.
The figures go to stdout, everything else to stderr.
exit codes: 0 evaluated, 1 failed (--predictions is whole or not there), 2 wrong usage, 130 interrupted
"""


@dataclass(frozen=True)
class _Answerer:
    """What is asked, and where it computes: "torch" or a runtime."""

    answers: AnswerFunction
    model: str
    runtime: str


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.threads is not None and arguments.threads > MAX_THREADS:
        parser.error(f"--threads is {arguments.threads}; expected at most {MAX_THREADS}")
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO if arguments.verbose else logging.ERROR, format="%(message)s"
    )
    if not arguments.verbose:
        silence_libraries()
    try:
        with _terminated_as_interrupted(), reserved_stdout() as stdout:
            _run(arguments, stdout)
        return EXIT_OK
    except KeyboardInterrupt:
        print("mote-eval: interrupted, nothing was written.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILURE  # whoever read the figures has left
    except Exception as error:
        if arguments.verbose:
            raise
        print(f"mote-eval: {sentence(error, left='')}", file=sys.stderr)
        return EXIT_FAILURE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mote-eval",
        description="Ask a model every question of a set and print how often it is right, by task. A checkpoint is asked in torch, "
        "an export in its own runtime, which needs no torch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="CHECKPOINT|EXPORT",
        help="model.pt, a transformers folder (MoTE or dense), or a folder of mote-export",
    )
    questions = parser.add_argument_group("questions")
    questions.add_argument("data", type=Path, metavar="DATA", help="questions with their answers")
    questions.add_argument(
        "--image-folder",
        type=Path,
        metavar="DIR",
        help="what pictures' paths are relative to (default: DATA's own folder)",
    )
    questions.add_argument("--limit", type=positive, metavar="N", help="ask the first N only")
    questions.add_argument(
        "--strict", action="store_true", help="fail where a picture is missing or broken, instead of skipping it"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--runtime", choices=tuple(RUNTIMES), help="of an export (default: the first it was made for)")
    how.add_argument(
        "--max-new-tokens",
        type=positive,
        default=DEFAULT_MAX_NEW_TOKENS,
        metavar="N",
        help="of an answer (default: %(default)s)",
    )
    how.add_argument("--threads", type=positive, metavar="N", help="default: the runtime's or torch's own choice")
    how.add_argument(
        "--batch-size", type=positive, default=DEFAULT_BATCH_SIZE, metavar="N", help="in torch (default: %(default)s)"
    )
    how.add_argument("--device", default="cpu", help="of torch, such as cuda (default: %(default)s)")
    how.add_argument(
        "--metric",
        choices=METRICS,
        default=DEFAULT_METRIC,
        help="exact: it is an accepted answer; contains: one stands in it; vqa: VQA's soft accuracy (default: %(default)s)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--predictions", type=Path, metavar="FILE", help="write every answer as a JSON line")
    output.add_argument("--against", type=Path, metavar="FILE", help="compare with the predictions of another model")
    output.add_argument("--json", action="store_true", help="print the figures as JSON")
    output.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    output.add_argument("-v", "--verbose", action="store_true", help="log the steps; show tracebacks")
    output.add_argument("--version", action="version", version=f"mote-eval {__version__}")
    return parser


def _run(arguments: argparse.Namespace, stdout: TextIO) -> None:
    earlier = None if arguments.against is None else read_predictions(arguments.against)
    _check_writable(arguments.predictions)
    progress: Callable[[Iterable[Question]], Iterable[Question]] = iter
    if not arguments.quiet:
        progress = lambda questions: tqdm(questions, desc="pictures", unit="question", disable=None)  # noqa: E731
    questions = read_questions(
        arguments.data, arguments.image_folder, limit=arguments.limit, strict=arguments.strict, progress=progress
    )
    if earlier is not None:
        check_comparable(questions.questions, earlier)
    if questions.skipped:
        print(f"mote-eval: {_describe_skipped(questions)}", file=sys.stderr)
    with _open_model(arguments) as answerer:
        start = time.monotonic()
        evaluation = evaluate(answerer.answers, questions.questions, arguments.metric)
        seconds = time.monotonic() - start
    try:
        if arguments.predictions is not None:
            write_predictions(arguments.predictions, evaluation)
    finally:  # figures of long work are not lost where the file is
        comparison = None if earlier is None else compare(evaluation, earlier)
        _show(arguments, answerer, evaluation, comparison, questions.skipped, seconds, stdout)


def _show(
    arguments: argparse.Namespace,
    answerer: _Answerer,
    evaluation: Evaluation,
    comparison: Comparison | None,
    skipped: int,
    seconds: float,
    stdout: TextIO,
) -> None:
    if arguments.json:
        document = {
            "model": answerer.model,
            "runtime": answerer.runtime,
            "skipped": skipped,
            "seconds": round(seconds, 3),
            **evaluation.to_json(),
            **({} if comparison is None else {"against": comparison.to_json()}),
        }
        stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        _print(evaluation, answerer, skipped, stdout)
        if comparison is not None:
            _print_comparison(comparison, arguments.against, stdout)
    stdout.flush()


def _check_writable(path: Path | None) -> None:
    """Before the long work."""
    if path is None:
        return
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise MoteError(f"--predictions {path} cannot be written: expected a file in a folder that exists and is yours")


def _describe_skipped(questions: QuestionSet) -> str:
    return (
        f"{questions.skipped} questions are skipped, as their pictures are missing or broken; the first: "
        f"{questions.reason}"
    )


@contextlib.contextmanager
def _open_model(arguments: argparse.Namespace) -> Iterator[_Answerer]:
    path: Path = arguments.model
    if (find_export(path, None) / MANIFEST_NAME).is_file():
        from mote_export.evaluation.runtime_model import RuntimeModel

        with RuntimeModel.load(
            path,
            arguments.runtime,
            arguments.threads,
            max_new_tokens=arguments.max_new_tokens,
            progress=not arguments.quiet,
        ) as model:
            manifest = model.pipeline.manifest
            yield _Answerer(model.answers, manifest.model.name, manifest.target)
        return
    if arguments.runtime is not None:
        raise MoteError(
            f"{path} is no export, so --runtime {arguments.runtime} cannot run it: export it with mote-export"
        )
    yield _open_checkpoint(arguments)


def _open_checkpoint(arguments: argparse.Namespace) -> _Answerer:
    try:
        import torch

        from mote_export.evaluation.torch_model import TorchModel
    except ModuleNotFoundError as error:
        raise MoteError(
            f"evaluating a checkpoint needs {error.name}, which is not installed: pip install 'mote[export]'"
        ) from error
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    model = TorchModel.load(
        arguments.model,
        arguments.device,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        progress=not arguments.quiet,
    )
    return _Answerer(model.answers, model.name, "torch")


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does, so that no half-written file stays."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _print(evaluation: Evaluation, answerer: _Answerer, skipped: int, stdout: TextIO) -> None:
    from rich.console import Console

    console = Console(file=stdout, highlight=False)
    console.print(_accuracy_table(evaluation, f"{answerer.model} in {answerer.runtime}"))
    if skipped:
        console.print(f"{skipped} questions were skipped: their pictures are missing or broken.")


def _print_comparison(comparison: Comparison, other: Path, stdout: TextIO) -> None:
    from rich.console import Console

    console = Console(file=stdout, highlight=False)
    console.print(_comparison_table(comparison, f"against {other}"))
    if comparison.unmatched:
        console.print(f"{comparison.unmatched} questions are not in the other predictions, so not compared.")


def _accuracy_table(evaluation: Evaluation, title: str) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{escape(title)}, metric {evaluation.metric}", title_justify="left")
    table.add_column("task")
    for column in ("questions", "accuracy", "95 % interval"):
        table.add_column(column, justify="right")

    def add(name: str, found: Score) -> None:
        low, high = found.interval
        table.add_row(escape(name), str(found.questions), f"{found.mean:.1%}", f"{low:.1%} - {high:.1%}")

    for task, found in evaluation.tasks.items():
        add(task, found)
    if len(evaluation.tasks) > 1:
        table.add_section()
        add("overall", evaluation.overall)
    return table


def _comparison_table(comparison: Comparison, title: str) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    table.add_column("task")
    for column in ("before", "now", "difference", "changed", "gained", "lost", "p"):
        table.add_column(column, justify="right")
    rows = [*comparison.tasks.items()]
    for name, found in [*rows, ("overall", comparison.overall)] if len(rows) > 1 else rows:
        table.add_row(
            escape(name),
            f"{found.before.mean:.1%}",
            f"{found.after.mean:.1%}",
            f"{100 * (found.after.mean - found.before.mean):+.1f}",
            str(found.changed),
            str(found.gained),
            str(found.lost),
            f"{found.p_value:.2g}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
