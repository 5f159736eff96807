"""How a signal ends the program: through its exception handlers, so that child processes and temporary folders go with it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_KILLED = 128  # a shell's exit code of a program that a signal ended, less the signal's number


@contextlib.contextmanager
def ending_signals_raise() -> Iterator[None]:
    """SIGTERM and a closed terminal end the program through its exception handlers, with the exit code that a shell expects."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(_KILLED + number)

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    heeded = [number for number in _ENDING_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as with nohup
    previous = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals wait: cleaning up takes a moment, and has a limit of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *_ENDING_SIGNALS)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
