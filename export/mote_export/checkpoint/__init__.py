"""What can be read. A new format is one file here and one line in `FORMATS`."""

from pathlib import Path

from mote_export.checkpoint import folder, pt
from mote_export.checkpoint.base import Checkpoint, CheckpointError, CheckpointFormat, OpenCheckpoint, check_files
from mote_export.checkpoint.dense import DenseCheckpoint, is_dense, load_dense
from mote_export.checkpoint.folder import save_folder
from mote_export.checkpoint.pt import load_model_pt, save_model_pt

FORMATS: tuple[CheckpointFormat, ...] = (pt.FORMAT, folder.FORMAT)

__all__ = [
    "FORMATS",
    "Checkpoint",
    "CheckpointError",
    "DenseCheckpoint",
    "OpenCheckpoint",
    "check_files",
    "is_dense",
    "load_any",
    "load_checkpoint",
    "load_dense",
    "load_model_pt",
    "open_path",
    "save_folder",
    "save_model_pt",
]


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a MoTE checkpoint of any known format, in float32, on the CPU. No code in it is run.

    Args:
        path: a model.pt, or a folder of `save_pretrained` with the files of tokenizer and image processor.

    Returns:
        The model in eval mode, and its text files.

    Raises:
        CheckpointError: one sentence that says what is wrong with the file.
    """
    return open_path(path).load()


def open_path(path: Path) -> OpenCheckpoint:
    """Opens a MoTE checkpoint of any known format: weights are read when they are asked for. As `load_checkpoint` otherwise."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: expected a model.pt file or a folder of save_pretrained.")
    for checkpoint_format in FORMATS:
        if checkpoint_format.matches(path):
            return checkpoint_format.open(path)
    known = "; ".join(checkpoint_format.description for checkpoint_format in FORMATS)
    raise CheckpointError(f"{path} is not a checkpoint that mote reads: expected {known}.")


def load_any(path: Path) -> Checkpoint | DenseCheckpoint:
    """Reads a MoTE checkpoint, or a dense folder of transformers: `load_checkpoint` or `load_dense`. Raises CheckpointError."""
    return load_dense(path) if is_dense(path) else load_checkpoint(path)
