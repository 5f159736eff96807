"""Random layers of all operators and the ONNX models that hold just one: shared by the tests of both plugins.

A test takes a `Case` from CASES, runs `layer` on `case.tokens()` and compares the bits with `reference`.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

import mote_export.ops  # noqa: F401  registers torch.ops.mote
from mote_export.packing import PACKINGS, SHARED_FORMATS, pack_gate_up, pack_scales

Array = NDArray[Any]
# Read by every ONNX Runtime since 1.15.
IR_VERSION = 8
OPSET = 17
# In the order of the operators' tables, without x.
INPUTS = {
    "TernaryMoE": (
        "router", "gate_up_packed", "gate_up_scale", "down_packed", "down_scale",
        "shared_gate_up", "shared_gate_up_scale", "shared_down", "shared_down_scale",
    ),
    "TernaryMatMul": ("packed", "scale"),
    "QuantizedMatMul": ("weight", "scale", "bias"),
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """Attributes in the order of the operator's table, and the weights that are there in the order of its inputs.

    Scales of a shared expert are arrays of `ml_dtypes.bfloat16`; torch wants them by way of `tensor`.
    """

    attributes: dict[str, int | str]
    weights: dict[str, Array] = field(repr=False)
    op_type: str = "TernaryMoE"

    @property
    def hidden_size(self) -> int:
        if "in_features" in self.attributes:
            return int(self.attributes["in_features"])
        return int(self.weights["router"].shape[1])

    def with_attributes(self, **changes: int | str) -> "Layer":
        return replace(self, attributes=self.attributes | changes)

    def with_weights(self, **changes: Array) -> "Layer":
        return replace(self, weights=self.weights | changes)

    def without_weights(self, *names: str) -> "Layer":
        return replace(self, weights={name: array for name, array in self.weights.items() if name not in names})

    def node_inputs(self) -> list[str]:
        """Names of the node's inputs in ONNX: "" for an absent one before the last that is there."""
        names = ["x", *(name if name in self.weights else "" for name in INPUTS[self.op_type])]
        while not names[-1]:
            names.pop()
        return names

    def tensors(self) -> list[Tensor | None]:
        """The weights for the torch operator: None for an absent one."""
        return [tensor(self.weights[name]) if name in self.weights else None for name in INPUTS[self.op_type]]

    def torch_attributes(self) -> list[Any]:
        """The attributes for the torch operator."""
        return [bool(value) if name == "normalize_topk" else value for name, value in self.attributes.items()]


def tensor(array: Array) -> Tensor:
    """A torch tensor of the same bits; numpy's bfloat16 is none of torch's own."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def random_layer(
    num_experts: int,
    hidden_size: int,
    intermediate_size: int,
    top_k: int,
    normalize_topk: int = 0,
    *,
    favourite: int | None = None,
    seed: int = 0,
    packing: str = "2bit",
    shared_format: str = "none",
    shared_group_size: int = 0,
) -> Layer:
    """A layer with random weights. All tokens with positive values go to the `favourite` first."""
    rng = np.random.default_rng(seed)

    def ternary(*shape: int) -> NDArray[np.int8]:
        return rng.integers(-1, 2, shape).astype(np.int8)

    E, H, I = num_experts, hidden_size, intermediate_size  # noqa: E741
    router = rng.standard_normal((E, H), dtype=np.float32) / np.float32(H**0.5)
    if favourite is not None:
        router[favourite] = np.abs(router).max() + 1
    lines = PACKINGS[packing]
    weights = {
        "router": router,
        "gate_up_packed": pack_gate_up(ternary(E, I, H), ternary(E, I, H), lines),
        "gate_up_scale": rng.uniform(0.01, 0.1, (E, 2)).astype(np.float32),
        "down_packed": lines.pack(ternary(E, H, I)),
        "down_scale": rng.uniform(0.01, 0.1, E).astype(np.float32),
    }
    if shared_format != "none":
        weights |= random_shared_expert(rng, H, I, shared_format, shared_group_size)
    attributes: dict[str, int | str] = {
        "num_experts": E,
        "top_k": top_k,
        "normalize_topk": normalize_topk,
        "intermediate_size": I,
        "activation": "silu",
        "packing": packing,
        "layout_version": 1,
        "shared_format": shared_format,
        "shared_group_size": shared_group_size,
    }
    return Layer(attributes, weights)


def random_shared_expert(
    rng: np.random.Generator, hidden_size: int, intermediate_size: int, shared_format: str, group_size: int
) -> dict[str, Array]:
    """Its inputs of the operator; the scales only where the format has some."""
    form = SHARED_FORMATS[shared_format]

    def quantized(rows: int, cols: int) -> tuple[Array, Tensor | None]:
        weight = rng.standard_normal((rows, cols), dtype=np.float32) / np.float32(cols**0.5)
        values, scale = form.quantize(torch.from_numpy(weight), group_size)
        return values.numpy(), scale

    gate, gate_scale = quantized(intermediate_size, hidden_size)
    up, up_scale = quantized(intermediate_size, hidden_size)
    down, down_scale = quantized(hidden_size, intermediate_size)
    weights = {"shared_gate_up": pack_gate_up(gate, up, form.packing)}
    if gate_scale is not None and up_scale is not None:
        weights["shared_gate_up_scale"] = _bfloat16(torch.stack([pack_scales(gate_scale), pack_scales(up_scale)], 1))
    weights["shared_down"] = form.packing.pack(down)
    if down_scale is not None:
        weights["shared_down_scale"] = _bfloat16(pack_scales(down_scale))
    return weights


def _bfloat16(values: Tensor) -> Array:
    return values.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)


def random_matmul(in_features: int, out_features: int, packing: str = "2bit", *, seed: int = 0) -> Layer:
    """A ternary linear layer with random weights."""
    rng = np.random.default_rng(seed)
    weights = {
        "packed": PACKINGS[packing].pack(rng.integers(-1, 2, (out_features, in_features)).astype(np.int8)),
        "scale": rng.uniform(0.01, 0.1, 1).astype(np.float32),
    }
    attributes: dict[str, int | str] = {
        "in_features": in_features,
        "out_features": out_features,
        "packing": packing,
        "layout_version": 1,
    }
    return Layer(attributes, weights, "TernaryMatMul")


def random_quantized(
    in_features: int, out_features: int, form: str, group_size: int = 0, bias: bool = True, *, seed: int = 0
) -> Layer:
    """A linear layer with random weights in a format of `SHARED_FORMATS`."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((out_features, in_features), dtype=np.float32) / np.float32(in_features**0.5)
    values, scale = SHARED_FORMATS[form].quantize(torch.from_numpy(weight), group_size)
    weights = {"weight": SHARED_FORMATS[form].packing.pack(values.numpy())}
    if scale is not None:
        weights["scale"] = _bfloat16(pack_scales(scale))
    if bias:
        weights["bias"] = rng.standard_normal(out_features, dtype=np.float32)
    attributes: dict[str, int | str] = {
        "in_features": in_features,
        "out_features": out_features,
        "format": form,
        "group_size": group_size,
        "layout_version": 1,
    }
    return Layer(attributes, weights, "QuantizedMatMul")


def random_tokens(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Case:
    """A layer and the shape of the tokens that go through it."""

    name: str
    shape: tuple[int, ...]
    layer: Layer
    positive: bool = False

    def tokens(self) -> NDArray[np.float32]:
        x = random_tokens(*self.shape)
        return np.abs(x) if self.positive else x


ROUTED_CASES = [
    Case("one_token", (1, 64), random_layer(4, 64, 96, 1)),
    Case("one_token_rank_1", (64,), random_layer(4, 64, 96, 1)),
    Case("sizes_not_of_16", (7, 40), random_layer(4, 40, 24, 2)),
    Case("sizes_below_16", (3, 5), random_layer(3, 5, 7, 2)),
    Case("sizes_of_1", (2, 1), random_layer(2, 1, 1, 1)),
    Case("one_expert", (5, 33), random_layer(1, 33, 17, 1)),
    Case("all_experts", (9, 48), random_layer(4, 48, 80, 4)),
    Case("normalized", (9, 48), random_layer(4, 48, 80, 2, normalize_topk=1)),
    Case("normalized_all_experts", (6, 31), random_layer(5, 31, 65, 5, normalize_topk=1)),
    Case("batch_of_sequences", (2, 11, 64), random_layer(8, 64, 32, 2)),
    Case("rank_4", (2, 1, 3, 32), random_layer(4, 32, 48, 1)),
    Case("zero_tokens", (0, 64), random_layer(4, 64, 96, 1)),
    Case("zero_tokens_in_batch", (1, 0, 64), random_layer(4, 64, 96, 2)),
    Case("all_to_one_expert", (37, 48), random_layer(4, 48, 80, 1, favourite=2), positive=True),
    Case("prefill", (130, 128), random_layer(4, 128, 384, 1)),
    Case("many_experts", (20, 32), random_layer(64, 32, 16, 6)),
]


# (format, group size) of the shared expert
SHARED = [("none", 0), ("bf16", 0), ("int8", 0), ("int4", 32), ("int4", 64), ("int4", 128)]


def _format_cases() -> list[Case]:
    """Every packing with every format of the shared expert, on sizes with and without padding; 2bit alone is above."""
    cases = []
    for packing in PACKINGS:
        for shared, group in SHARED:
            options: dict[str, Any] = {"packing": packing, "shared_format": shared, "shared_group_size": group}
            name = f"{packing}_{shared}" + (f"_{group}" if group else "")
            if (packing, shared) == ("2bit", "none"):
                continue
            cases += [
                Case(f"{name}_one_token", (1, 160), random_layer(4, 160, 320, 1, **options)),
                Case(f"{name}_odd_sizes", (7, 45), random_layer(3, 45, 77, 2, normalize_topk=1, **options)),
                Case(f"{name}_sizes_of_1", (2, 1), random_layer(2, 1, 1, 1, **options)),
                Case(f"{name}_prefill", (2, 19, 64), random_layer(4, 64, 272, 2, **options)),
                Case(f"{name}_zero_tokens", (0, 64), random_layer(4, 64, 32, 1, **options)),
            ]
    return cases


MOE_CASES = [*ROUTED_CASES, *_format_cases()]
MATMUL_CASES = [
    Case(f"matmul_{packing}_{name}", (*lead, sizes[0]), random_matmul(*sizes, packing))
    for packing in PACKINGS
    for name, lead, sizes in (
        ("one_token", (1,), (64, 96)),
        ("rank_1", (), (40, 24)),
        ("sizes_of_1", (2,), (1, 1)),
        ("odd_sizes", (7,), (45, 77)),
        ("rank_4", (2, 1, 3), (33, 16)),
        ("zero_tokens", (0,), (64, 32)),
        ("prefill", (130,), (320, 128)),
    )
]
QUANTIZED_CASES = [
    Case(f"quantized_{form}_{group}_{name}", (*lead, sizes[0]), random_quantized(*sizes, form, group, has_bias))
    for form, group in SHARED
    if form != "none"
    for name, lead, sizes, has_bias, every_format in (
        ("one_token", (1,), (160, 96), False, True),
        ("odd_sizes", (7,), (45, 77), True, True),
        ("prefill", (130,), (320, 128), True, True),
        ("rank_1", (), (40, 24), True, False),
        ("sizes_of_1", (2,), (1, 1), True, False),
        ("rank_4", (2, 1, 3), (33, 16), False, False),
        ("zero_tokens", (0,), (64, 32), True, False),
    )
    if every_format or group == 32
]
CASES = [*MOE_CASES, *MATMUL_CASES, *QUANTIZED_CASES]
TORCH_NAMES = {
    "TernaryMoE": "ternary_moe",
    "TernaryMatMul": "ternary_matmul",
    "QuantizedMatMul": "quantized_matmul",
}


def reference(layer: Layer, x: Array) -> Array:
    """The operator in plain torch, which defines the bits."""
    op = getattr(torch.ops.mote, TORCH_NAMES[layer.op_type])
    result: Array = op(torch.from_numpy(x), *layer.tensors(), *layer.torch_attributes()).numpy()
    return result


def assert_same_bits(actual: Array, expected: Array) -> None:
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def onnx_model(
    layer: Layer,
    x_shape: tuple[int | str, ...],
    *,
    graph_inputs: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model of one node named `moe`. The weights in `graph_inputs` are inputs of the graph instead of initializers."""
    node = helper.make_node(layer.op_type, layer.node_inputs(), ["y"], name="moe", domain="mote", **layer.attributes)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)]
    for name in graph_inputs:
        weight = layer.weights[name]
        inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(weight.dtype), weight.shape))
    graph = helper.make_graph(
        [node],
        "one_node",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in layer.weights.items() if name not in graph_inputs],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("mote", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
