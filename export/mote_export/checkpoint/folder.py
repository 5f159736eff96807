"""A transformers folder: config.json, model.safetensors (one or sharded) and the tokenizer's files, from `save_pretrained`."""

from pathlib import Path
from typing import Any

from mote_export.atomic import atomic_folder
from mote_export.checkpoint.base import (
    COMPANION_FILES,
    Checkpoint,
    CheckpointError,
    CheckpointFormat,
    OpenCheckpoint,
    check_files,
    open_checkpoint,
)
from mote_export.checkpoint.tensor_files import stored_tensors
from mote_export.json_file import read_json, read_text

CONFIG = "config.json"


def save_folder(path: Path, checkpoint: Checkpoint) -> None:
    """Writes what `from_pretrained` of transformers' Auto classes, processors and pipelines opens; complete or not at all.

    Args:
        path: an absent or empty folder.
        checkpoint: its model is written in its present dtype, and its own files as they are, except processor_config.json,
            which always is the model's.

    Raises:
        MoteError: `path` is taken, or the tokenizer or the vision tower is not one that mote exports.
    """
    from mote_export.checkpoint.stock_files import stock_files  # it needs what is built upon checkpoints

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(
            f"{path} is {'not empty' if path.is_dir() else 'a file'}: expected an absent or empty folder to save to."
        )
    files = stock_files(checkpoint)
    with atomic_folder(path) as temporary:
        checkpoint.model.save_pretrained(temporary)
        for name, content in files.items():
            (temporary / name).write_text(content, encoding="utf-8")


def open_folder(path: Path) -> OpenCheckpoint:
    """Opens a folder of `save_pretrained` with its tokenizer files.

    Raises:
        CheckpointError: one sentence that says what is wrong.
    """
    config = read_config(path)
    files = read_companions(path)
    return open_checkpoint(path, path.resolve().name, config, stored_tensors(path), files)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a folder, as it is in the file. Raises CheckpointError."""
    return read_json(path / CONFIG, "a model's configuration", CheckpointError)


def read_companions(path: Path) -> dict[str, str]:
    """The text files of a folder that belong to its model, the tokenizer's among them. Raises CheckpointError."""
    found = [name for name in COMPANION_FILES if (path / name).exists()]
    return check_files(path, {name: read_text(path / name, "a text file", CheckpointError) for name in found})


def _matches(path: Path) -> bool:
    return (path / CONFIG).is_file()


FORMAT = CheckpointFormat("a folder of save_pretrained with config.json", _matches, open_folder)
