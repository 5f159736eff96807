"""`mote-run`: ask an exported model a question, and read its answer as it is written."""

import argparse
import contextlib
import ctypes
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

import mote_runtime
from mote_runtime.backends import RUNTIMES
from mote_runtime.errors import MoteError
from mote_runtime.pipeline import DEFAULT_MAX_NEW_TOKENS, Pipeline, load
from mote_runtime.sampling import Sampler

logger = logging.getLogger("mote-run")

EXIT_OK, EXIT_FAILURE, EXIT_INTERRUPTED = 0, 1, 130  # wrong usage is argparse's 2

_EPILOG = """\
examples:
  ask about a picture; the answer appears word by word
    mote-run exported --image photo.png --prompt "What number is shown?"
  the ExecuTorch half of `mote-export --target all`, with two threads
    mote-run exported --runtime executorch --threads 2 --prompt "Hello"
  a varied answer that can be repeated
    mote-run exported --prompt "Hello" --temperature 0.8 --top-p 0.95 --seed 7
  token ids and timings for a program
    mote-run exported --prompt "Hello" --json | jq .timings.decode_token_per_sec

The answer goes to stdout, everything else to stderr.
exit codes: 0 answered, 1 failed (one sentence on stderr), 2 wrong usage, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line, in the groups of its help."""
    parser = argparse.ArgumentParser(
        prog="mote-run",
        usage="mote-run DIR --prompt TEXT [--image FILE] [options]",
        description="Answer a prompt, with images if the model takes them, by a model that mote-export wrote.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    question = parser.add_argument_group("the question")
    question.add_argument("--prompt", required=True, metavar="TEXT", help="what to ask (needed)")
    question.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture; give it again for more than one"
    )
    model = parser.add_argument_group("the model")
    model.add_argument("folder", metavar="DIR", help="an exported folder, or one with onnx/ and executorch/ inside")
    model.add_argument("--runtime", choices=tuple(RUNTIMES), help="default: the one that DIR was exported for")
    model.add_argument("--threads", type=_positive, metavar="N", help="default: the runtime's own choice")
    add_verify_option(model)
    answer = parser.add_argument_group("the answer")
    answer.add_argument(
        "--max-new-tokens", type=_positive, default=DEFAULT_MAX_NEW_TOKENS, metavar="N", help="default: %(default)s"
    )
    answer.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token each time (default)"
    )
    answer.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of this total only"
    )
    answer.add_argument("--seed", type=int, default=0, metavar="N", help="for a temperature above 0; default: 0")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON object: answer, token ids, timings")
    output.add_argument("-v", "--verbose", action="store_true", help="timings, and the traceback of an error")
    output.add_argument("--version", action="version", version=f"mote-run {mote_runtime.__version__}")
    return parser


def add_verify_option(group: argparse._ArgumentGroup) -> None:
    """`verify`: True, False, or None for what `mote_runtime.load` does unless told."""
    group.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="compare the SHA-256 of all files with the export's, which reads every byte of the weights, or of none; "
        "default: of files up to 16 MiB; sizes are compared in any case",
    )


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (argparse itself leaves with 2 on wrong usage)."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        Sampler(arguments.temperature, arguments.top_p, arguments.seed)
    except MoteError as error:
        parser.error(str(error))
    level = logging.DEBUG if arguments.verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="mote-run: %(message)s", force=True)
    for name in ("mote-run", "mote_runtime"):
        logging.getLogger(name).setLevel(level)
    try:
        with reserved_stdout() as stdout:
            _run(arguments, stdout)
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILURE  # whoever read the answer has left, so there is nobody to tell
    except MoteError as error:
        logger.error("%s", error, exc_info=arguments.verbose)
    except Exception as error:
        logger.error(
            "internal error: %s: %s (-v shows where).", type(error).__name__, error, exc_info=arguments.verbose
        )
    return EXIT_FAILURE


def _run(arguments: argparse.Namespace, stdout: TextIO) -> None:
    with load(arguments.folder, arguments.runtime, arguments.threads, arguments.verify) as pipeline:
        generation = pipeline.generate(
            arguments.image,
            arguments.prompt,
            arguments.max_new_tokens,
            arguments.temperature,
            arguments.top_p,
            arguments.seed,
        )
        if not arguments.json:
            for piece in generation:
                stdout.write(piece)
                stdout.flush()
            stdout.write("\n")
        answer = generation.answer()
        if arguments.json:
            json.dump(_report(pipeline, answer), stdout)
            stdout.write("\n")
        stdout.flush()
        if arguments.verbose:
            _log_timings(answer)


def _report(pipeline: Pipeline, answer: mote_runtime.Answer) -> dict[str, object]:
    return {
        "answer": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "model": pipeline.manifest.model.name,
        "runtime": pipeline.manifest.target,
        "timings": answer.timings,
    }


def _log_timings(answer: mote_runtime.Answer) -> None:
    timings = answer.timings
    logger.debug(
        "loaded in %.0f ms; prompt of %d tokens in %.0f ms (%.1f tokens/s); "
        "answer of %d tokens at %.1f tokens/s, ended by: %s",
        timings["model_load_end_ms"] - timings["model_load_start_ms"],
        timings["prompt_tokens"],
        timings["prompt_eval_end_ms"] - timings["inference_start_ms"],
        timings["prefill_token_per_sec"],
        timings["generated_tokens"],
        timings["decode_token_per_sec"],
        answer.finish_reason,
    )


@contextlib.contextmanager
def reserved_stdout() -> Iterator[TextIO]:
    """The real stdout for the answer alone; meanwhile what a C library prints to its stdout goes to stderr.

    ExecuTorch's libraries log to C's stdout. Where stdout is not the process's file 1 (a test, a notebook), there
    is nothing to keep apart and it is used as it is.
    """
    try:
        shared = sys.stdout.fileno() == 1
    except (OSError, ValueError):
        shared = False
    if not shared:
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        # A console that cannot show a character gets a question mark instead of an exception.
        with open(kept, "w", encoding=sys.stdout.encoding, errors="replace", closefd=False) as stdout:
            yield stdout
    finally:
        ctypes.CDLL(None).fflush(None)  # or C would write what it buffered after file 1 is the answer's again
        os.dup2(kept, 1)
        os.close(kept)


if __name__ == "__main__":
    sys.exit(main())
