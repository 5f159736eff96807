"""Random layers of the operator and the ONNX models that hold just one: shared by the tests of both plugins."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import mote_export.ops  # noqa: F401  registers torch.ops.mote
from mote_export.packing import pack_2bit, pack_gate_up

Array = NDArray[Any]
# Read by every ONNX Runtime since 1.15.
IR_VERSION = 8
OPSET = 17


@dataclass(frozen=True)
class Layer:
    """Attributes in the order of the operator's table, and weights in the order of its inputs."""

    attributes: dict[str, int | str]
    weights: dict[str, Array] = field(repr=False)

    @property
    def hidden_size(self) -> int:
        return int(self.weights["router"].shape[1])

    def with_attributes(self, **changes: int | str) -> "Layer":
        return replace(self, attributes=self.attributes | changes)

    def with_weights(self, **changes: Array) -> "Layer":
        return replace(self, weights=self.weights | changes)


def random_layer(
    num_experts: int,
    hidden_size: int,
    intermediate_size: int,
    top_k: int,
    normalize_topk: int = 0,
    *,
    favourite: int | None = None,
    seed: int = 0,
) -> Layer:
    """A layer with random ternary weights. All tokens with positive values go to the `favourite` first."""
    rng = np.random.default_rng(seed)

    def ternary(*shape: int) -> NDArray[np.int8]:
        return rng.integers(-1, 2, shape).astype(np.int8)

    E, H, I = num_experts, hidden_size, intermediate_size  # noqa: E741
    router = rng.standard_normal((E, H), dtype=np.float32) / np.float32(H**0.5)
    if favourite is not None:
        router[favourite] = np.abs(router).max() + 1
    weights = {
        "router": router,
        "gate_up_packed": pack_gate_up(ternary(E, I, H), ternary(E, I, H)),
        "gate_up_scale": rng.uniform(0.01, 0.1, (E, 2)).astype(np.float32),
        "down_packed": pack_2bit(ternary(E, H, I)),
        "down_scale": rng.uniform(0.01, 0.1, E).astype(np.float32),
    }
    attributes: dict[str, int | str] = {
        "num_experts": E,
        "top_k": top_k,
        "normalize_topk": normalize_topk,
        "intermediate_size": I,
        "activation": "silu",
        "packing": "2bit",
        "layout_version": 1,
    }
    return Layer(attributes, weights)


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


CASES = [
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


def reference(layer: Layer, x: Array) -> Array:
    """The operator in plain torch, which defines the bits."""
    weights = [torch.from_numpy(weight) for weight in layer.weights.values()]
    attributes = layer.attributes | {"normalize_topk": bool(layer.attributes["normalize_topk"])}
    result: Array = torch.ops.mote.ternary_moe(torch.from_numpy(x), *weights, *attributes.values()).numpy()
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
    node = helper.make_node("TernaryMoE", ["x", *layer.weights], ["y"], name="moe", domain="mote", **layer.attributes)
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
