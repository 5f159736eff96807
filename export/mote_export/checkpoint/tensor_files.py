"""The tensors of a transformers folder, one safetensors file or many: known by their headers, read one block at a time."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mote_export.checkpoint.base import CheckpointError
from mote_export.json_file import read_json, without_duplicates

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# safetensors' names of the float types; tensors of other types keep these names.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCK_BYTES = 4 << 20
HEADER_LENGTH = 8  # bytes of the number that a file begins with


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a tensor in a file; the dtype is safetensors' name where it is no float type of 16 or 32 bits."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str

    @property
    def float_dtype(self) -> torch.dtype:
        """Of a tensor that is known to have one that mote reads."""
        assert isinstance(self.dtype, torch.dtype)
        return self.dtype

    @property
    def num_parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_parameters * self.float_dtype.itemsize


@dataclass(frozen=True)
class StoredTensor(TensorSpec):
    """A tensor that lies in a file, under a name of its own there."""

    file: Path
    name: str

    def read(self) -> Tensor:
        """The whole tensor, on the mapped file: its bytes are read when they are used. Raises CheckpointError."""
        try:
            with safe_open(self.file, framework="pt") as tensors:
                whole: Tensor = tensors.get_tensor(self.name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.file, error) from error
        return whole

    def part(self, index: int) -> Tensor:
        """The tensor at `index` of its first dimension, on the mapped file as `read`. Raises CheckpointError."""
        try:
            with safe_open(self.file, framework="pt") as tensors:
                part: Tensor = tensors.get_slice(self.name)[index]
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.file, error) from error
        return part

    def blocks(self, most_bytes: int = BLOCK_BYTES) -> Iterator[Tensor]:
        """The tensor flattened, in consecutive blocks of about `most_bytes`, a row at least. Raises CheckpointError.

        A mapped page counts as memory of this process until its file is closed, so each block opens the file anew: what is
        held at a time is one block, however large tensor and file are.
        """
        if not self.shape or 0 in self.shape:
            yield self.read().reshape(-1)
            return
        rows = self.shape[0]
        row_bytes = 4 * math.prod(self.shape[1:])
        step = max(1, most_bytes // row_bytes)
        for start in range(0, rows, step):
            try:
                with safe_open(self.file, framework="pt") as tensors:
                    block: Tensor = tensors.get_slice(self.name)[start : start + step]
            except (SafetensorError, OSError) as error:
                raise _unreadable(self.file, error) from error
            yield block.reshape(-1)
            del block


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder by their names in its files; no weight is read.

    Raises:
        CheckpointError: a file is missing or damaged, two hold a tensor of the same name, or the index names what is not there.
    """
    weight_map = None if (folder / WEIGHTS).is_file() else _find_index(folder)
    files = [folder / WEIGHTS] if weight_map is None else [folder / name for name in sorted(set(weight_map.values()))]
    found: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _read_header(file):
            if tensor.name in found:
                raise CheckpointError(f"{tensor.name} is in {found[tensor.name].file.name} and {file.name} of {folder}")
            found[tensor.name] = tensor
    for name, shard in (weight_map or {}).items():
        if name not in found or found[name].file.name != shard:
            raise CheckpointError(f"{folder / INDEX} names {name} in {shard}, which does not hold it")
    return found


def _find_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    if not path.exists():
        hint = ""
        if any((folder / name).exists() for name in PICKLED):
            hint = ", and PyTorch's pickled files are not read, as they may hold code: save it with safe_serialization=True"
        raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}{hint}")
    return read_index(path)


def read_index(path: Path) -> dict[str, str]:
    """Tensor to file of a sharded model. Raises CheckpointError."""
    weight_map = read_json(path, "an index of a model's files", CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path} names a file outside of its folder: {name!r}")
    return weight_map


def _read_header(file: Path) -> list[StoredTensor]:
    if file.exists() and not file.is_file():  # opening a pipe would wait for someone who writes to it
        raise CheckpointError(f"{file} is no regular file; expected safetensors")
    tensors = []
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  not a dict
                view = opened.get_slice(name)
                dtype = view.get_dtype()
                tensors.append(StoredTensor(tuple(view.get_shape()), DTYPES.get(dtype, dtype), file, name))
        _check_unique(file)
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
    return tensors


def _check_unique(file: Path) -> None:
    """Of a header that safetensors has read, and checked but for this: of two tensors of one name it takes the last."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(HEADER_LENGTH), "little")
        header = opened.read(length)
    try:
        json.loads(header, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {file} cannot be read: {error}") from error


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file} cannot be read as safetensors, it is missing or damaged: {error}")
