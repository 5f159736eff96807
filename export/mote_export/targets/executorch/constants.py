"""The packed weights of a program, which never are in memory as a whole.

ExecuTorch's emitter copies every constant, and its serializer keeps them all until the file is written. So operators of mote are
exported with a few bytes in the place of each large constant, and the embedding with one row in the place of its table: neither
looks at them before it runs. When the program is complete, the shapes of the real ones are put in, and their bytes are copied from
their maps while the file is written.
"""

from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from executorch.exir import ExecutorchBackendConfig, ExecutorchProgramManager
from executorch.exir._serialize._cord import FileBackedData
from executorch.exir._serialize._serialize import serialize_for_executorch
from executorch.exir.schema import Tensor as ProgramTensor
from torch import Tensor, nn

from mote_export.passes import PackedLinear, PackedTernaryExperts, PackedTernaryLinear
from mote_export.passes.quantize_linear import Bf16Embedding
from mote_export.passes.xnnpack_quantized import LookedUpEmbedding
from mote_export.scratch import byte_pieces, is_kept, release

OPERATORS = (PackedLinear, PackedTernaryExperts, PackedTernaryLinear)
TABLES = (LookedUpEmbedding, Bf16Embedding)  # [V, K]: what is looked up has the width of a row
STAND_IN_BYTES = 16


def take_constants(model: nn.Module) -> dict[bytes, Tensor]:
    """Puts stand-ins in the place of the operators' large constants, in place.

    Returns:
        The constants, by the bytes of their stand-ins.
    """
    constants: dict[bytes, Tensor] = {}
    for module in model.modules():
        if not isinstance(module, (*OPERATORS, *TABLES)):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if is_kept(buffer):
                size = buffer[:1].nbytes if isinstance(module, TABLES) else STAND_IN_BYTES
                if size < STAND_IN_BYTES:  # a column, which is small
                    continue
                content = b"mote" + len(constants).to_bytes(size - 4, "little")
                stand_in = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(buffer.dtype)
                module._buffers[name] = stand_in.view(1, -1) if isinstance(module, TABLES) else stand_in
                constants[content] = buffer
    return constants


def write_program(
    manager: ExecutorchProgramManager,
    constants: Mapping[bytes, Tensor],
    config: ExecutorchBackendConfig,
    file: BinaryIO,
) -> None:
    """Writes a program that was lowered with stand-ins, with the constants themselves."""
    program = manager.executorch_program
    real: dict[int, Tensor] = {}
    for index, buffer in enumerate(program.constant_buffer):
        constant = constants.get(buffer.storage)
        if constant is not None:
            real[index] = constant
            buffer.storage = MappedConstant(constant)
    assert len(real) == len(constants)
    for plan in program.execution_plan:
        for value in plan.values:
            tensor = value.val
            if isinstance(tensor, ProgramTensor) and tensor.allocation_info is None and tensor.data_buffer_idx in real:
                tensor.sizes = list(real[tensor.data_buffer_idx].shape)
                tensor.dim_order = list(range(len(tensor.sizes)))
    content, _ = serialize_for_executorch(
        manager._emitter_output, config, manager._data_serializer, manager._named_data
    )
    content.write_to_file(file)


class MappedConstant(FileBackedData):
    """The bytes of a mapped tensor, in the interface of what ExecuTorch's serializer copies piece by piece."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return self.tensor.nbytes

    def __deepcopy__(self, memo: dict[int, Any]) -> "MappedConstant":
        return self  # the serializer copies the program first

    def write_to_file(self, outfile: Any) -> None:
        for piece in byte_pieces(self.tensor):
            outfile.write(piece)
        release(self.tensor)
