"""What can be read. A new format is one file here and one line in `FORMATS`."""

from pathlib import Path

from mote_export.checkpoint import bitnet, folder, moe_llava, pt
from mote_export.checkpoint.base import (
    KINDS,
    Checkpoint,
    CheckpointError,
    CheckpointFormat,
    OpenCheckpoint,
    check_files,
)
from mote_export.checkpoint.dense import DenseCheckpoint, load_dense
from mote_export.checkpoint.folder import CONFIG, read_config, save_folder
from mote_export.checkpoint.moe_llava import open_moe_llava
from mote_export.checkpoint.pt import load_model_pt, save_model_pt

# The first that matches is taken; the last one takes every folder of a model.
FORMATS: tuple[CheckpointFormat, ...] = (pt.FORMAT, moe_llava.FORMAT, bitnet.FORMAT, folder.FORMAT)

__all__ = [
    "FORMATS",
    "Checkpoint",
    "CheckpointError",
    "DenseCheckpoint",
    "OpenCheckpoint",
    "check_files",
    "is_dense",
    "known_formats",
    "load_any",
    "load_checkpoint",
    "load_dense",
    "load_model_pt",
    "open_moe_llava",
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


def open_path(path: Path, vision_tower: Path | None = None) -> OpenCheckpoint:
    """Opens a MoTE checkpoint of any known format: weights are read when they are asked for. As `load_checkpoint` otherwise.

    Args:
        vision_tower: see `open_moe_llava`; other formats hold their own.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: expected {known_formats()}.")
    found = next((checkpoint_format for checkpoint_format in FORMATS if checkpoint_format.matches(path)), None)
    if found is None:
        raise CheckpointError(f"{path} is not a checkpoint that mote reads: expected {known_formats()}.")
    if vision_tower is None:
        return found.open(path)
    if found is not moe_llava.FORMAT:
        raise CheckpointError(
            f"{path} is {found.description}, which holds its vision tower itself: leave --vision-tower out."
        )
    return open_moe_llava(path, vision_tower)


def known_formats() -> str:
    """What can be read, for messages and help."""
    return "; ".join(checkpoint_format.description for checkpoint_format in FORMATS)


def is_dense(path: Path) -> bool:
    """Whether a path is a transformers folder of a model that no format here is for but `load_dense`. Raises CheckpointError."""
    if not (path / CONFIG).is_file() or any(other.matches(path) for other in FORMATS[:-1]):
        return False
    model_type = read_config(path).get("model_type")
    return not isinstance(model_type, str) or model_type not in KINDS


def load_any(path: Path) -> Checkpoint | DenseCheckpoint:
    """Reads a MoTE checkpoint, or a dense folder of transformers: `load_checkpoint` or `load_dense`. Raises CheckpointError."""
    return load_dense(path) if is_dense(path) else load_checkpoint(path)
