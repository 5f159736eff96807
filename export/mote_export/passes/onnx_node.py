"""How a pass emits a node of ONNX domain `mote` (docs/operator.md)."""

from collections.abc import Mapping, Sequence

import torch
from torch import SymInt, Tensor

DOMAIN = "mote"
OP_VERSION = 1


def onnx_node(
    op_type: str,
    inputs: Sequence[Tensor | None],
    attributes: Mapping[str, int | str | bool],
    shape: Sequence[int | SymInt],
) -> Tensor:
    """A node with a float32 output of `shape`. Only torch.onnx.export can run it.

    Absent inputs after the last one that is there are left out; ONNX has no booleans among attributes.
    """
    present = list(inputs)
    while present[-1] is None:
        present.pop()
    y: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{op_type}",
        present,
        {name: int(value) if isinstance(value, bool) else value for name, value in attributes.items()},
        dtype=torch.float32,
        shape=shape,
        version=OP_VERSION,
    )
    return y
