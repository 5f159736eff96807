"""What a `.pte` says about its instructions: the names of operators, and the bytes of stored weights that each reads.

An ETDump names instructions by their number, and leaves out the name of kernels that do not announce themselves. The schemas
are ExecuTorch's `program.fbs` and XNNPACK's `runtime_schema.fbs`; only the few fields needed are read, without ExecuTorch.
"""

import mmap
import struct
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mote_runtime.profile.strict import ProfileError
from mote_runtime.profile.trace.flatbuffer import Table
from mote_runtime.profile.trace.vocabulary import READ_IN_PART, operator

_IDENTIFIER = b"ET"
_EXTENDED_HEADER = b"eh00"
_XNNPACK_HEADER = b"XH00"
_KERNEL_CALL, _DELEGATE_CALL = 1, 2  # InstructionArguments
_TENSOR = 5  # KernelTypes
_SEGMENT = 1  # DataLocation
_MAX_DIMENSIONS = 64
# Bytes of an element by ScalarType; types of less than a byte do not occur here.
_ITEM_BYTES = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 8, 11: 1, 15: 2, 27: 2, 28: 4, 29: 8}


@dataclass(frozen=True, slots=True)
class Instruction:
    """The runtime's name of what runs, and the bytes of weights it reads: None where that depends on the input or is unknown."""

    name: str
    weight_bytes: int | None


Program = Mapping[str, tuple[Instruction, ...]]


def read_program(path: Path) -> Program:
    """The instructions of each method of a `.pte`; raises ProfileError where the file is damaged or of another kind."""
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            try:
                return _read(view)
            except (ProfileError, struct.error) as error:
                # The frames of the error hold slices of the file, which cannot be closed before these are gone.
                traceback.clear_frames(error.__traceback__)
                raise ProfileError(f"{path} is no program of ExecuTorch that can be read: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ProfileError(f"{path} cannot be read: {error}") from error


def _read(view: memoryview) -> Program:
    if bytes(view[4:6]) != _IDENTIFIER:
        raise ProfileError("its first bytes are not those of a program")
    root = Table.root(view)
    segment_base = struct.unpack_from("<Q", view, 24)[0] if bytes(view[8:12]) == _EXTENDED_HEADER else 0
    segments = [(segment_base + each.scalar(0, "Q"), each.scalar(1, "Q")) for each in root.tables(4)]
    methods: dict[str, tuple[Instruction, ...]] = {}
    for plan in root.tables(1):
        operators = [f"{each.text(0)}.{each.text(1)}" if each.text(1) else each.text(0) for each in plan.tables(6)]
        delegates = [_delegate(each, view, segments, root) for each in plan.tables(7)]
        constants = [_constant_bytes(value) for value in plan.tables(2)]
        chains = list(plan.tables(5))
        methods[plan.text(0)] = tuple(
            _instruction(each, operators, delegates, constants) for chain in chains[:1] for each in chain.tables(2)
        )
    return methods


def _instruction(
    instruction: Table, operators: list[str], delegates: list[Instruction], constants: list[int]
) -> Instruction:
    kind, arguments = instruction.scalar(0, "B"), instruction.table(1)
    if arguments is not None and kind == _KERNEL_CALL:
        index = arguments.scalar(0, "i")
        if not 0 <= index < len(operators):
            raise ProfileError(f"an instruction names operator {index} of {len(operators)}")
        name = operators[index]
        weights = sum(constants[value] for value in set(arguments.scalars(1, "i")) if 0 <= value < len(constants))
        return Instruction(name, None if operator(name) in READ_IN_PART else weights)
    if arguments is not None and kind == _DELEGATE_CALL:
        index = arguments.scalar(0, "i")
        if not 0 <= index < len(delegates):
            raise ProfileError(f"an instruction names delegate {index} of {len(delegates)}")
        return delegates[index]
    return Instruction("control", 0)


def _constant_bytes(value: Table) -> int:
    """Bytes of a value that is a constant tensor, else 0."""
    tensor = value.table(1) if value.scalar(0, "B") == _TENSOR else None
    if tensor is None or tensor.scalar(5, "I") == 0 or tensor.table(6) is not None:
        return 0
    count = 1
    sizes = tensor.scalars(2, "i")
    if len(sizes) > _MAX_DIMENSIONS:
        raise ProfileError(f"a tensor has {len(sizes)} dimensions; expected at most {_MAX_DIMENSIONS}")
    for size in sizes:
        count *= max(size, 0)
    return count * _ITEM_BYTES.get(tensor.scalar(0, "b"), 0)


def _delegate(delegate: Table, view: memoryview, segments: list[tuple[int, int]], root: Table) -> Instruction:
    name, reference = delegate.text(0), delegate.table(1)
    if reference is None:
        return Instruction(name, None)
    index = reference.scalar(1, "I")
    if reference.scalar(0, "b") == _SEGMENT:
        if index >= len(segments):
            raise ProfileError(f"a delegate names segment {index} of {len(segments)}")
        start, size = segments[index]
        if start + size > len(view):
            raise ProfileError(f"a segment of {size} bytes at {start} does not fit a file of {len(view)}")
        return Instruction(name, _xnnpack_weight_bytes(view[start : start + size]))
    inline = list(root.tables(3))
    return Instruction(name, _xnnpack_weight_bytes(inline[index].bytes(0)) if index < len(inline) else None)


def _xnnpack_weight_bytes(payload: memoryview) -> int | None:
    """Bytes of the constants of a graph of XNNPACK; None for another backend's."""
    if len(payload) < 30 or bytes(payload[4:8]) != _XNNPACK_HEADER:
        return None
    start, size = struct.unpack_from("<II", payload, 10)
    if start + size > len(payload):
        raise ProfileError(f"a graph of {size} bytes at {start} does not fit its {len(payload)} bytes")
    graph = Table.root(payload[start : start + size])
    return sum(each.scalar(1, "Q") for each in graph.tables(8))
