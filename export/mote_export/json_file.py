"""JSON files of unknown origin: an object of reasonable size, or one sentence."""

import json
from pathlib import Path
from typing import Any

from mote_runtime.errors import MoteError

MAX_BYTES = 64 << 20  # the index of a model with a million tensors; a configuration has a few KiB


def read_json(path: Path, what: str, error_type: type[MoteError] = MoteError) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        what: what it should be, for messages: "a model's configuration".
        error_type: of what is raised.

    Raises:
        MoteError: it is missing, larger than 64 MiB, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error_type(f"{path} has more than {MAX_BYTES >> 20} MiB; expected {what}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise error_type(f"{path} cannot be read as {what} in JSON: {error}") from error
    if not isinstance(content, dict):
        raise error_type(f"{path} holds a JSON {type(content).__name__}, expected the object of {what}")
    return content
