"""ONNX external data laid out so that a runtime can map it and kernels can read it in place.

onnx-ir's own writer aligns large tensors only. Here every external tensor begins at a multiple of 64 bytes (a line of the packed
layout), and the file is padded to the page size of recent phones.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir
import torch

from mote_export.scratch import byte_pieces, release

TENSOR_ALIGNMENT = 64
FILE_ALIGNMENT = 16 * 1024
INLINE_BYTES = 1024  # smaller tensors stay in the .onnx file, where shape inference can see them


def save_with_external_data(program: torch.onnx.ONNXProgram, path: Path) -> None:
    """Writes `path` and, if the graph has tensors of 1 KiB or more, `path`.data."""
    data = path.with_name(path.name + ".data")
    model = program.model
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
    else:
        yield tensor.tobytes()


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
