"""A transformers folder: config.json, model.safetensors (one or sharded) and the tokenizer's files, from `save_pretrained`."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mote_export.atomic import atomic_folder
from mote_export.checkpoint.base import (
    COMPANION_FILES,
    Checkpoint,
    CheckpointError,
    CheckpointFormat,
    build_model,
    check_files,
)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


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


def load_folder(path: Path) -> Checkpoint:
    """Reads a folder of `save_pretrained` with its tokenizer files; the model is float32, in eval mode.

    Raises:
        CheckpointError: one sentence that says what is wrong.
    """
    config = _read_json(path / CONFIG)
    state: dict[str, Tensor] = {}
    for shard in _shards(path):
        try:
            with safe_open(shard, framework="pt") as tensors:
                state.update({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118  not a dict
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{shard} cannot be read as safetensors, it is missing or damaged: {error}."
            ) from error
    try:
        files = {name: (path / name).read_text(encoding="utf-8") for name in COMPANION_FILES if (path / name).is_file()}
    except (OSError, UnicodeError) as error:
        raise CheckpointError(f"a text file of {path} cannot be read: {error}.") from error
    checked = check_files(path, files)
    return Checkpoint(name=path.resolve().name, model=build_model(path, config, state), files=checked)


def _shards(path: Path) -> list[Path]:
    if not (path / INDEX).exists():
        return [path / WEIGHTS]
    weight_map = _read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path / INDEX} has no weight_map.")
    names = sorted({str(name) for name in weight_map.values()})
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{path / INDEX} names a file outside of its folder.")
    return [path / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, expected an object.")
    return content


def _matches(path: Path) -> bool:
    return (path / CONFIG).is_file()


FORMAT = CheckpointFormat("a folder of save_pretrained with config.json", _matches, load_folder)
