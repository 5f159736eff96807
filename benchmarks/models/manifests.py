"""Bytes that an export holds, and those that a token reads, from its manifest and its ONNX graph."""

import json
import math
import mmap
import re
from pathlib import Path
from typing import Any

from mote_runtime.manifest import MANIFEST_NAME
from mote_runtime.profile.trace.flatbuffer import Table

from .shapes import Shape

FLOAT32_BYTES = 4
ROTARY = re.compile(r"(^|[._/])(cos|sin)([._/]|$)")  # tables of which a token reads a row
DECODER, PROGRAM = "model.onnx", "model.pte"
# Fields of ExecuTorch's program.fbs.
PLANS, PLAN_NAME, PLAN_BUFFERS = 1, 0, 8


def read_manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    return found


def expert_bytes(manifest: dict[str, Any]) -> dict[str, int]:
    """Of the packed ternary experts, their scales and routers, and the shared experts."""
    return {name: manifest["memory"][name] for name in ("packed", "scales_and_routers", "shared")}


def chosen_expert_bytes(manifest: dict[str, Any]) -> float:
    """What one token reads of the experts: those that it is routed to, all routers, the shared expert."""
    moe, experts = manifest["moe"], expert_bytes(manifest)
    return experts["packed"] * moe["top_k"] / moe["num_experts"] + experts["scales_and_routers"] + experts["shared"]


def bytes_per_token(manifest: dict[str, Any], shape: Shape) -> dict[str, float]:
    """What one decode step reads of the weights, by part; a row of the embedding is nothing.

    The manifest knows what is stored as integers (codes, and scales at 16 bits) or in 16 bits; the rest is float32. Norms and
    biases, below 0.1 %, are left out.
    """
    parts = {part["part"]: part for part in manifest.get("quantization", {}).get("parts", ())}

    def stored(part: str, parameters: int) -> float:
        found = parts.get(part)
        return parameters * (found["bytes"] / found["parameters"] if found else FLOAT32_BYTES)

    return {
        "experts": chosen_expert_bytes(manifest),
        "attention": stored("linear", shape.attention_parameters),
        "head": stored("lm_head", shape.vocab * shape.hidden),
    }


def graph_bytes_per_token(folder: Path) -> float:
    """The same from the decoder's graph for ONNX Runtime: all of its constants, less the experts that a token is not routed to.

    No weight is read. Tables of rotary embedding, of which a token reads one row, do not count.
    """
    import onnx

    manifest = read_manifest(folder)
    graph = onnx.load(folder / DECODER, load_external_data=False).graph
    total = sum(_num_bytes(tensor) for tensor in graph.initializer if not ROTARY.search(tensor.name))
    moe = manifest["moe"]
    return total - expert_bytes(manifest)["packed"] * (1 - moe["top_k"] / moe["num_experts"])


def _num_bytes(tensor: Any) -> int:
    import onnx

    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    bits = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}.get(tensor.data_type)
    if bits is None:
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-math.prod(tensor.dims) * bits // 8)


def planned_bytes(folder: Path) -> dict[str, int]:
    """Bytes that each method of a program sets aside for activations and the KV cache; only what is used becomes resident."""
    with (
        (folder / PROGRAM).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        plans = [
            (plan.text(PLAN_NAME), sum(plan.scalars(PLAN_BUFFERS, "q"))) for plan in Table.root(view).tables(PLANS)
        ]
        return {name: size for name, size in plans if size > 0}
