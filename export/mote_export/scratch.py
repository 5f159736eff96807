"""What an export has made of the weights so far, in a file instead of in memory.

Tensors are appended to one file without a name, which the system removes with the process however that ends, and are used as maps
of it: the kernel keeps their pages while there is room, and drops them where there is not.
"""

import ctypes
import mmap
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from mote_export.weights import check_finite, read

# By address; a tensor holds its map, and the last one of a map takes its entry along.
_maps: "weakref.WeakValueDictionary[int, np.memmap[Any, Any]]" = weakref.WeakValueDictionary()
SMALLEST = 64 << 10  # smaller tensors stay in memory
WRITTEN_AT_ONCE = 16 << 20


class Scratch:
    """A growing file of tensors; a context. Maps of it stay valid after it is closed.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        """Makes the file in `folder`, an existing one with as much room as the export takes."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by __exit__
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def keep(self, tensor: Tensor) -> Tensor:
        """The same values as a map of the file; a small tensor as it is. The result is not to be written to."""
        if tensor.nbytes < SMALLEST:
            return tensor
        start = self._end
        self._file.seek(start)
        for piece in byte_pieces(tensor):
            self._file.write(piece)
        self._file.flush()
        self._end = start + tensor.nbytes + -tensor.nbytes % mmap.ALLOCATIONGRANULARITY
        # A private map: what is written to it by mistake never reaches the file.
        mapped = np.memmap(self._file, np.uint8, mode="c", offset=start, shape=(tensor.nbytes,))
        result = torch.from_numpy(mapped).view(tensor.dtype).view(tensor.shape)
        _maps[result.data_ptr()] = mapped
        return result

    def keep_module(self, module: nn.Module) -> None:
        """Replaces, in place, the weights of a module that are in memory; those on the meta device stay.

        Buffers that are not persistent, such as a KV cache, are no weights.
        """
        self._replace_parameters(module, lambda tensor: None if _stays(tensor) else tensor.detach())
        for owner in module.modules():
            for name, buffer in list(owner.named_buffers(recurse=False)):
                if not _stays(buffer) and name not in owner._non_persistent_buffers_set:
                    owner._buffers[name] = self.keep(buffer)

    def load_parameters(self, module: nn.Module) -> None:
        """Reads, in place, the parameters that are on the meta device; afterwards all are float32 and on the CPU.

        Raises:
            MoteError: a tensor cannot be read, or contains NaN or infinity.
        """

        def loaded(tensor: Tensor) -> Tensor | None:
            if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
                return None
            values = read(tensor).float()
            check_finite(tensor, values)
            return values

        self._replace_parameters(module, loaded)

    def _replace_parameters(self, module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> None:
        """Puts what `change` makes of a parameter in its place, and keeps it; None leaves it. Tied ones stay tied."""
        done: dict[int, nn.Parameter] = {}
        for owner in module.modules():
            for name, parameter in list(owner.named_parameters(recurse=False)):
                if id(parameter) not in done:
                    values = change(parameter)
                    new = parameter if values is None else nn.Parameter(self.keep(values), requires_grad=False)
                    done[id(parameter)] = new
                owner.register_parameter(name, done[id(parameter)])


def _stays(tensor: Tensor) -> bool:
    return tensor.is_meta or is_kept(tensor)


def byte_pieces(tensor: Tensor) -> "list[memoryview]":
    """The bytes of a tensor on the CPU, row-major and little-endian, in pieces of at most 16 MiB."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return [flat[start : start + WRITTEN_AT_ONCE].data for start in range(0, flat.size, WRITTEN_AT_ONCE)]


def is_kept(tensor: Tensor) -> bool:
    """Whether a tensor is a map of a scratch file, from its beginning."""
    return not tensor.is_meta and tensor.data_ptr() in _maps


def release_heap() -> None:
    """Gives back what the C library keeps of freed blocks: after the weights of a large model more than a gigabyte at times."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def release(tensor: Tensor) -> None:
    """Tells the kernel that the pages of a map are not needed soon; it is as usable as before. Nothing for other tensors."""
    mapped = None if tensor.is_meta else _maps.get(tensor.data_ptr())
    if mapped is not None:
        held: mmap.mmap = mapped._mmap  # type: ignore[attr-defined]
        held.madvise(mmap.MADV_DONTNEED)
