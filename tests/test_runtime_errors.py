"""The sentences of the errors."""

import pickle

import pytest

from mote_runtime.errors import BackendError, MoteError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("it has 1 file; expected 2", "it has 1 file; expected 2."),
        ("the library says: No.", "the library says: No."),
        ("the library says: No!", "the library says: No!"),
        ("cut short...", "cut short..."),
        ("install it (with pip)", "install it (with pip)."),
    ],
)
def test_every_sentence_has_one_end(message: str, shown: str) -> None:
    for kind in (MoteError, BackendError):
        error = kind(message)
        assert str(error) == str(pickle.loads(pickle.dumps(error))) == shown
