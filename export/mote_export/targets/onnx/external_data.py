"""ONNX external data laid out so that a runtime can map it and kernels can read it in place.

onnx-ir's own writer aligns large tensors only. Here every external tensor begins at a multiple of 64 bytes (a line of the packed
layout), and the file is padded to the page size of recent phones.
"""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir
import torch

from mote_export.scratch import WRITTEN_AT_ONCE, byte_pieces, release

TENSOR_ALIGNMENT = 64
FILE_ALIGNMENT = 16 * 1024
INLINE_BYTES = 1024  # smaller tensors stay in the .onnx file, where shape inference can see them


def save_with_external_data(program: torch.onnx.ONNXProgram, path: Path) -> None:
    """Writes `path` and, if the graph has tensors of 1 KiB or more, `path`.data."""
    save_model(program.model, path)


def save_model(model: ir.Model, path: Path) -> None:
    """`save_with_external_data` for any graph; external data that it has already is copied.

    Raises:
        OSError: a file cannot be written, or external data ends early.
    """
    data = path.with_name(path.name + ".data")
    large = [value for value in model.graph.initializers.values() if value.const_value is not None]
    large = [value for value in large if value.const_value.nbytes >= INLINE_BYTES]
    if large:
        with data.open("wb") as file:
            for value in large:
                file.write(bytes(-file.tell() % TENSOR_ALIGNMENT))
                value.const_value = _write(value, file.tell(), data, file)
            file.write(bytes(-file.tell() % FILE_ALIGNMENT))
    ir.save(model, path)


def _pieces(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor; of one of torch's a few at a time, and those of a map are let go afterwards."""
    raw = getattr(tensor, "raw", None)
    if isinstance(raw, torch.Tensor):
        yield from byte_pieces(raw)
        release(raw)
    elif isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > 0:
        yield from _stored_pieces(tensor)
    else:
        yield tensor.tobytes()


def _stored_pieces(tensor: ir.ExternalTensor) -> Iterator[bytes]:
    """Read, not mapped: pages of a map would count as memory of this process until it is closed."""
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        left = tensor.nbytes
        while left:
            piece = file.read(min(left, WRITTEN_AT_ONCE))
            if not piece:
                raise OSError(errno.EIO, f"{tensor.name} ends early", tensor.path)
            left -= len(piece)
            yield piece


def _write(value: ir.Value, offset: int, data: Path, file: BinaryIO) -> ir.ExternalTensor:
    tensor = value.const_value
    assert tensor is not None
    assert tensor.name is not None
    for piece in _pieces(tensor):
        file.write(piece)
    return ir.ExternalTensor(
        location=data.name,
        offset=offset,
        length=tensor.nbytes,
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape),
        name=tensor.name,
        base_dir=data.parent,
    )
