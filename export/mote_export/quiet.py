"""Keeps the inner workings of libraries, which they report as warnings, away from who called an export."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No warnings, and no log records up to WARNING, unless mote_export's own logger is set to be verbose."""
    if logging.getLogger("mote_export").isEnabledFor(logging.INFO):
        yield
        return
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
