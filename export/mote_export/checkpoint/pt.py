"""`model.pt`: one file of {"format", "format_version", "config", "state_dict", "files"}, read with weights_only=True."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mote_export.atomic import atomic_path
from mote_export.checkpoint.base import (
    LM_HEAD,
    Checkpoint,
    CheckpointError,
    CheckpointFormat,
    OpenCheckpoint,
    check_files,
    in_memory,
    open_checkpoint,
)
from mote_export.checkpoint.torch_files import ZIP_MAGIC, check_tensors, load_torch_file
from mote_export.model import MoteModel

KEYS = {"format", "format_version", "config", "state_dict", "files"}
FORMAT_NAME = "mote-checkpoint"
FORMAT_VERSION = 1


def save_model_pt(path: Path, model: MoteModel, files: Mapping[str, str]) -> None:
    """Writes `model` in its present dtype, with its tokenizer and processor files; complete or not at all.

    Args:
        path: the file to write or replace.
        model: from any device; it stays as it is.
        files: name to content, as in `Checkpoint.files`.

    Raises:
        CheckpointError: a file is not one that a checkpoint carries, or the tokenizer's are missing.
    """
    state = model.state_dict()
    if model.lm_head.weight is model.get_input_embeddings().weight:
        del state[LM_HEAD]
    content = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "config": model.config.to_dict(),
        "state_dict": {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()},
        "files": check_files(path, files),
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_model_pt(path: Path) -> Checkpoint:
    """Reads what `save_model_pt` wrote; the model is float32, in eval mode. Raises CheckpointError."""
    return open_model_pt(path).load()


def open_model_pt(path: Path) -> OpenCheckpoint:
    """Opens what `save_model_pt` wrote, whose weights stay in the file. No code in it is run.

    Raises:
        CheckpointError: one sentence that says what is wrong with the file.
    """
    content = load_torch_file(path, "a file of save_model_pt")
    config, state, files = content.get("config"), content.get("state_dict"), content.get("files")
    _check_format(path, content)
    if not (isinstance(config, dict) and isinstance(state, dict) and isinstance(files, dict)):
        raise CheckpointError(f"{path} lacks its config, state_dict or files: it was not written by save_model_pt.")
    if content.keys() != KEYS:
        extra = sorted(map(repr, content.keys() ^ KEYS))
        raise CheckpointError(f"{path} holds something else under {extra[0]:.80}, expected {', '.join(sorted(KEYS))}.")
    tensors = in_memory(check_tensors(path, state))
    return open_checkpoint(path, path.stem, config, tensors, check_files(path, files))


def read_config(path: Path) -> dict[str, Any]:
    """The configuration alone, as it is in the file; weights are not read. Raises CheckpointError."""
    content = load_torch_file(path, "a file of save_model_pt")
    _check_format(path, content)
    config = content.get("config")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} lacks its config: it was not written by save_model_pt.")
    return config


def _check_format(path: Path, content: Mapping[Any, Any]) -> None:
    if content.get("format") != FORMAT_NAME or content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is a torch file but not a MoTE checkpoint: found format {content.get('format')!r} version "
            f"{content.get('format_version')!r}, expected {FORMAT_NAME!r} version {FORMAT_VERSION}."
        )


def _matches(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


FORMAT = CheckpointFormat("a model.pt file written by save_model_pt", _matches, open_model_pt)
