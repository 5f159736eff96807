"""Writes safetensors whose tensors do not fit into memory: all headers first, then the bytes of each tensor in any order.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name to dtype, shape and offsets) and the tensors
without gaps, as https://github.com/huggingface/safetensors describes it.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from torch import Tensor

from mote_export.checkpoint.tensor_files import DTYPES, INDEX, WEIGHTS, TensorSpec

ALIGNMENT = 8
FORMAT_METADATA = {"format": "pt"}  # transformers asks for it
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorWriter:
    """The safetensors of a model in a folder: one file, or shards with an index, named as transformers names them.

    Used as a context; `write` is to give every tensor all of its bytes.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        ValueError: on leaving, bytes are missing.
    """

    def __init__(self, folder: Path, specs: Mapping[str, TensorSpec], max_shard_bytes: int) -> None:
        """Writes the headers.

        Args:
            folder: where to write.
            specs: of all tensors, by name.
            max_shard_bytes: of a file's tensors; a single one that is larger has a file of its own.
        """
        self.folder, self.specs = folder, specs
        self.missing_bytes = self.num_bytes = sum(spec.num_bytes for spec in specs.values())
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        self._shards = _shards(specs, max_shard_bytes)

    def __enter__(self) -> Self:
        try:
            for number, names in enumerate(self._shards, start=1):
                self._open(_shard_name(number, len(self._shards)), names)
            if len(self._shards) > 1:
                self._write_index()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if error is None and self.missing_bytes != 0:
            raise ValueError(f"{self.missing_bytes} bytes of {self.num_bytes} were not written")

    def write(self, name: str, offset: int, data: Tensor) -> int:
        """Writes consecutive elements of a tensor.

        Args:
            name: of the tensor.
            offset: of the first element, counted in elements from the tensor's beginning.
            data: the elements, of any shape; cast to the tensor's dtype.

        Returns:
            The number of bytes written.
        """
        spec = self.specs[name]
        file, start = self._places[name]
        content = data.to(spec.float_dtype).reshape(-1).contiguous().view(torch.uint8).numpy()
        file.seek(start + offset * spec.float_dtype.itemsize)
        file.write(content.data)
        self.missing_bytes -= content.nbytes
        return content.nbytes

    def _open(self, file_name: str, names: Sequence[str]) -> None:
        header: dict[str, object] = {"__metadata__": FORMAT_METADATA}
        begins: dict[str, int] = {}
        end = 0
        for name in names:
            spec = self.specs[name]
            begins[name], end = end, end + spec.num_bytes
            header[name] = {"dtype": _NAMES[spec.float_dtype], "shape": spec.shape, "data_offsets": (begins[name], end)}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        file = (self.folder / file_name).open("wb")
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        start = 8 + len(text)
        file.truncate(start + end)
        self._places |= {name: (file, start + begin) for name, begin in begins.items()}

    def _write_index(self) -> None:
        names = {
            name: _shard_name(number, len(self._shards))
            for number, shard in enumerate(self._shards, start=1)
            for name in shard
        }
        parameters = sum(spec.num_parameters for spec in self.specs.values())
        metadata = {"total_parameters": parameters, "total_size": self.num_bytes}
        content = json.dumps({"metadata": metadata, "weight_map": dict(sorted(names.items()))}, indent=2)
        (self.folder / INDEX).write_text(content + "\n", encoding="utf-8")

    def _close(self) -> None:
        with (
            ExitStack() as stack
        ):  # the last bytes of a file are written on closing; all are closed, if one fails or not
            for file in self._files:
                stack.callback(file.close)
            self._files = []


def _shard_name(number: int, count: int) -> str:
    if count == 1:
        return WEIGHTS
    return WEIGHTS.replace(".safetensors", f"-{number:05}-of-{count:05}.safetensors")


def _shards(specs: Mapping[str, TensorSpec], max_bytes: int) -> list[list[str]]:
    """The names in each file, in the model's order; within a file wider dtypes come first, so that all lie aligned."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.num_bytes
    return [sorted(shard, key=lambda name: -specs[name].float_dtype.itemsize) for shard in shards]
