"""Tensors in torch's own files, mapped: zip archives of a pickle that may hold tensors and plain data and nothing else."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mote_export.checkpoint.base import CheckpointError, check_layout, in_memory
from mote_export.checkpoint.tensor_files import INDEX, PICKLED, WEIGHTS, read_index, stored_tensors
from mote_export.weights import TensorSource

TORCH_WEIGHTS, TORCH_INDEX = PICKLED
ZIP_MAGIC = b"PK\x03\x04"


def load_torch_file(path: Path, expected: str) -> dict[Any, Any]:
    """The dictionary in a file of `torch.save`, whose tensors are maps of the file. No code in it is run.

    Args:
        expected: what the file should be, for messages: "a file of save_model_pt".

    Raises:
        CheckpointError: it is damaged, of the format before torch 1.6, or holds something else.
    """
    if not path.is_file():  # opening a pipe would wait for someone who writes to it
        raise CheckpointError(f"{path} {'is no regular file' if path.exists() else 'is missing'}: expected {expected}.")
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            raise CheckpointError(
                f"{path} is not a zip archive as torch.save has written since 1.6: expected {expected}; load and save an older "
                "one with torch, or convert it to safetensors."
            )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} contains Python objects other than tensors and plain data, perhaps code, and was not loaded: "
            f"expected {expected}."
        ) from error
    except Exception as error:  # what the unpickler raises on damaged bytes is not documented
        raise CheckpointError(
            f"{path} is truncated or damaged: it cannot be read as a torch file ({_first_line(error)})."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected {expected}.")
    return content


def check_tensors(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """`state` of a file, after a check that it is a state dict of ordinary tensors. Raises CheckpointError."""
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path} holds a {type(tensor).__name__} under {name!r:.80}, expected nothing but named tensors."
            )
        check_layout(path, name, tensor)
    return dict(state)


def folder_tensors(folder: Path) -> dict[str, TensorSource]:
    """The tensors of a folder: of safetensors, or else of `pytorch_model.bin`, one file or shards with an index.

    Raises:
        CheckpointError: a file is missing or damaged, two hold a tensor of the same name, or the index names what is not there.
    """
    has_safetensors = any((folder / name).is_file() for name in (WEIGHTS, INDEX))
    if has_safetensors or not any((folder / name).is_file() for name in PICKLED):
        return dict(stored_tensors(folder))
    if (folder / TORCH_WEIGHTS).is_file():
        return in_memory(_load_shard(folder / TORCH_WEIGHTS))
    weight_map = read_index(folder / TORCH_INDEX)
    found: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        tensors = _load_shard(folder / shard)
        for name, tensor in tensors.items():
            if weight_map.get(name) != shard:
                where = f"in {weight_map[name]}" if name in weight_map else "nowhere"
                raise CheckpointError(f"{folder / shard} holds {name}, which {TORCH_INDEX} has {where}.")
            found[name] = tensor
    for name, shard in weight_map.items():
        if name not in found:
            raise CheckpointError(f"{folder / TORCH_INDEX} names {name} in {shard}, which does not hold it.")
    return in_memory(found)


def _load_shard(path: Path) -> dict[str, Tensor]:
    return check_tensors(path, load_torch_file(path, "a state dict of torch.save"))


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
