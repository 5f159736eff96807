"""JSON files of unknown origin: an object of reasonable size, or one sentence."""

import json
from pathlib import Path
from typing import Any

from mote_runtime.errors import MoteError

MAX_BYTES = 64 << 20  # the index of a model with a million tensors; a configuration has a few KiB


def read_text(path: Path, what: str, error_type: type[MoteError] = MoteError) -> str:
    """The text of a regular file of at most 64 MiB, in UTF-8; arguments and errors as of `read_json`."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for someone who writes to it
            raise error_type(f"{path} is no regular file; expected {what}")
        if path.stat().st_size > MAX_BYTES:
            raise error_type(f"{path} has more than {MAX_BYTES >> 20} MiB; expected {what}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise error_type(f"{path} cannot be read as {what}: {error}") from error


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook`: of a key that comes twice, which value is meant is anyone's guess. Raises ValueError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has {twice!r:.120} twice")
    return found


def read_json(path: Path, what: str, error_type: type[MoteError] = MoteError) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        what: what it should be, for messages: "a model's configuration".
        error_type: of what is raised.

    Raises:
        MoteError: it is missing, no regular file, larger than 64 MiB, not JSON, not an object, or has a key twice.
    """
    text = read_text(path, what, error_type)
    try:
        content = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise error_type(f"{path} cannot be read as {what} in JSON: {error}") from error
    if not isinstance(content, dict):
        raise error_type(f"{path} holds a JSON {type(content).__name__}, expected the object of {what}")
    return content
