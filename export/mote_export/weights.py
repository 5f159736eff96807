"""Weights that are not in memory: where the values of a model on torch's meta device come from.

A parameter of such a model carries its source. Whoever needs the values reads them from there, a matrix at a time, so that a
checkpoint of any size passes through an export of bounded memory (docs/architecture.md).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mote_runtime.errors import MoteError

_SOURCE, _NAME = "mote_source", "mote_name"  # attributes of a parameter


class TensorSource(Protocol):
    """A tensor that can be read. Both methods raise CheckpointError where the file is damaged."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype | str:
        """Of what `read` returns; a name where mote has no use for the type."""

    def read(self) -> Tensor:
        """The whole tensor, mapped where it can be."""

    def part(self, index: int) -> Tensor:
        """The whole tensor at `index` of its first dimension."""


class TensorInMemory:
    """A tensor as a source: one that is mapped already, or of a model that was made here."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.dtype: torch.dtype | str = tensor.dtype

    def read(self) -> Tensor:
        return self.tensor.cpu()

    def part(self, index: int) -> Tensor:
        return self.tensor[index].cpu()


class StackedSource:
    """Sources of one shape as the parts of a tensor, such as the matrices of experts that a file holds one by one."""

    def __init__(self, parts: Sequence[TensorSource]) -> None:
        self.parts = tuple(parts)
        self.shape: tuple[int, ...] = (len(parts), *parts[0].shape)
        self.dtype: torch.dtype | str = parts[0].dtype

    def read(self) -> Tensor:
        return torch.stack([part.read() for part in self.parts])

    def part(self, index: int) -> Tensor:
        return self.parts[index].read()


def attach_sources(model: nn.Module, sources: Mapping[str, TensorSource]) -> None:
    """Says of every parameter where its values are; of tied ones the first name counts.

    Raises:
        KeyError: a parameter has no source.
    """
    for name, parameter in model.named_parameters():
        setattr(parameter, _SOURCE, sources[name])
        setattr(parameter, _NAME, name)


def source_of(parameter: Tensor) -> TensorSource:
    """Where the values of a parameter are: what was attached to it, or itself."""
    source: TensorSource | None = getattr(parameter, _SOURCE, None)
    return TensorInMemory(parameter) if source is None else source


def read(parameter: Tensor) -> Tensor:
    """All values, on the CPU, in the dtype that they are stored in; they may not be finite. Raises MoteError."""
    return source_of(parameter).read()


def read_part(parameter: Tensor, index: int) -> Tensor:
    """The values at `index` of the first dimension, otherwise as `read`."""
    return source_of(parameter).part(index)


def check_finite(parameter: Tensor, computed: Tensor) -> None:
    """Raises MoteError where what was computed of a parameter's values shows that one of them is NaN or infinity.

    Scales do, by the mean or the greatest of magnitudes, and are read faster than the values.
    """
    if not bool(torch.isfinite(computed).all()):
        name = getattr(parameter, _NAME, "a weight")
        raise MoteError(f"{name} contains NaN or infinity: the checkpoint is damaged or its training diverged.")


def shared_copy(model: Any) -> Any:
    """A copy of modules, whose tensors are those of `model` itself: passes replace modules, and never write into a tensor."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
