"""Keeps the inner workings of libraries, which they report as warnings, away from who called an export."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

# Both switches belong to the process. Exports in several threads share one turn of them: the first that comes makes it quiet, the
# last that goes restores what the first one found. Each on its own would restore what another had set, and leave it so.
_lock = threading.Lock()
_inside = 0
_turn = contextlib.ExitStack()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No warnings, and no log records up to WARNING, unless mote_export's own logger is set to be verbose."""
    global _inside
    with _lock:
        # Others have switched the logger off as well, so it is asked by the first one only.
        if _inside == 0 and not logging.getLogger("mote_export").isEnabledFor(logging.INFO):
            _make_quiet(_turn)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _turn.close()


def _make_quiet(turn: contextlib.ExitStack) -> None:
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    turn.callback(logging.disable, disabled)
    turn.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
