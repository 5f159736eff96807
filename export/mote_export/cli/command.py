"""What the commands share: exit codes, what a user is told of an error, and how a command ends that fails or is interrupted."""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

EXIT_OK, EXIT_FAILURE, EXIT_INTERRUPTED = 0, 1, 130  # argparse exits with 2 for wrong usage
MIB = 1 << 20


def positive(text: str) -> int:
    """For argparse: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def silence_libraries() -> None:
    """torch, ONNX and ExecuTorch report inner workings as warnings; a user sees one sentence or a report."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_LOGS", "-all")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def sentence(error: Exception, left: str = "nothing was written") -> str:
    """What a user is told of an error. left: what it leaves behind; "" where that is said already."""
    from mote_runtime.errors import MoteError

    notes = [left] if left else []
    if isinstance(error, MoteError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"cannot read or write {error.filename or 'the output'}: {error.strerror or error}"
    elif isinstance(error, MemoryError):
        text = "out of memory"
    else:
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        notes.append("-v shows where")
    if notes:
        text = "; ".join([text.rstrip("."), *notes])
    return text if text.endswith((".", "!", "?")) else f"{text}."


def attempt(program: str, work: Callable[[], Result], *, verbose: bool) -> tuple[int, Result | None]:
    """Does the work of a command that writes all of its output or none.

    SIGTERM ends it as Ctrl-C does, so that it leaves nothing behind then, either.

    Returns:
        The exit code, and the result; None where it failed, of which a user has been told.

    Raises:
        Exception: what went wrong, if `verbose`.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.ERROR, format="%(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    if not verbose:
        silence_libraries()
    try:
        return EXIT_OK, work()
    except KeyboardInterrupt:
        print(f"{program}: interrupted, nothing was written.", file=sys.stderr)
        return EXIT_INTERRUPTED, None
    except Exception as error:
        if verbose:
            raise
        print(f"{program}: {sentence(error)}", file=sys.stderr)
        return EXIT_FAILURE, None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
