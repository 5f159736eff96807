"""`model.pt`: one file of {"format", "format_version", "config", "state_dict", "files"}, read with weights_only=True."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mote_export.atomic import atomic_path
from mote_export.checkpoint.base import (
    LM_HEAD,
    Checkpoint,
    CheckpointError,
    CheckpointFormat,
    OpenCheckpoint,
    check_files,
    check_layout,
    in_memory,
    open_checkpoint,
)
from mote_export.model import MoteModel

FORMAT_NAME = "mote-checkpoint"
FORMAT_VERSION = 1
ZIP_MAGIC = b"PK\x03\x04"


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
    content = _load_content(path)
    config, state, files = content.get("config"), content.get("state_dict"), content.get("files")
    _check_format(path, content)
    if not (isinstance(config, dict) and isinstance(state, dict) and isinstance(files, dict)):
        raise CheckpointError(f"{path} lacks its config, state_dict or files: it was not written by save_model_pt.")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()):
        raise CheckpointError(f"{path}: state_dict holds something that is no named tensor.")
    for name, tensor in state.items():
        check_layout(path, name, tensor)
    return open_checkpoint(path, path.stem, config, in_memory(state), check_files(path, files))


def read_config(path: Path) -> dict[str, Any]:
    """The configuration alone, as it is in the file; weights are not read. Raises CheckpointError."""
    content = _load_content(path)
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


def _load_content(path: Path) -> dict[Any, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} contains Python objects other than tensors and plain data, perhaps code, and was not loaded: "
            f"expected a file of save_model_pt."
        ) from error
    except Exception as error:  # what the unpickler raises on damaged bytes is not documented
        raise CheckpointError(
            f"{path} is truncated or damaged: it cannot be read as a torch file ({_first_line(error)})."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a MoTE checkpoint dictionary.")
    return content


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _matches(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


FORMAT = CheckpointFormat("a model.pt file written by save_model_pt", _matches, open_model_pt)
