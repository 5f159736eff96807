"""ONNX graphs of random weights, without writing the weights again for every graph.

All tensors of one kind lie in one file of random bytes that all graphs share; within a graph each tensor has bytes of its own, so
a layer reads from memory what a layer of a model reads. Layers stand side by side and all take the same `x`: values stay in
range whatever the weights are, and each has a router of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .shapes import Shape

ALIGNMENT = 4096  # more than any of the operators asks for
TILE_BYTES = 32 << 20  # the files repeat themselves after this, at other addresses
FLOAT, UINT8, BFLOAT16 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.BFLOAT16
ITEM_SIZE = {FLOAT: 4, UINT8: 1, BFLOAT16: 2}
INLINE_LIMIT = 1 << 16


def _random_codes(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, TILE_BYTES, dtype=np.uint8)


def _random_bf16(rng: np.random.Generator) -> np.ndarray:
    """Both signs, magnitude 2^-7 to 2^-5: no denormal number, and no sum that overflows."""
    bits = rng.integers(0, 1 << 16, TILE_BYTES // 2, dtype=np.uint16)
    return (bits & np.uint16(0x80FF)) | np.uint16(0x3C00)


def _positive_bf16(rng: np.random.Generator) -> np.ndarray:
    return _random_bf16(rng) & np.uint16(0x7FFF)


def _random_f32(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.01, 0.03, TILE_BYTES // 4).astype(np.float32)


#: Kind of tensor: how its file is filled.
FILES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "codes": _random_codes,
    "bf16": _random_bf16,
    "bf16_scales": _positive_bf16,
    "f32": _random_f32,
}


class WeightFiles:
    """The files in `folder`, as long as the greatest graph needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tiles: dict[str, int] = {}

    def reserve(self, used: dict[str, int]) -> None:
        """Makes every file at least so long; call it before a graph that needs it is opened."""
        for kind, size in used.items():
            tiles = -(-size // TILE_BYTES)
            missing = tiles - self._tiles.get(kind, 0)
            if missing > 0:
                tile = FILES[kind](np.random.default_rng(0)).tobytes()
                with (self._folder / f"{kind}.bin").open("ab") as file:
                    for _ in range(missing):
                        file.write(tile)
                self._tiles[kind] = tiles

    def paths(self) -> list[Path]:
        return [self._folder / f"{kind}.bin" for kind in self._tiles]


@dataclass
class Traffic:
    """What one layer reads for a call, and computes for a token."""

    always_bytes: int = 0
    expert_bytes: int = 0  # one expert; read if a token selects it
    integer_products: int = 0  # for each token
    float_products: int = 0


@dataclass
class Graph:
    """Layers of one operator, while they are built."""

    shape: Shape
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    routers: list[np.ndarray] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    used: dict[str, int] = field(default_factory=dict)

    def weight(self, kind: str, dtype: int, shape: tuple[int, ...], experts: int = 0) -> str:
        """A tensor of random bytes; `experts`: its leading size, if a token reads just one of them."""
        name = f"w{len(self.tensors)}"
        length = int(np.prod(shape)) * ITEM_SIZE[dtype]
        offset = self.used.get(kind, 0)
        self.used[kind] = offset + -(-length // ALIGNMENT) * ALIGNMENT
        tensor = TensorProto(name=name, data_type=dtype, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", f"{kind}.bin"), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        self.tensors.append(tensor)
        if experts:
            self.traffic.expert_bytes += length // experts
        else:
            self.traffic.always_bytes += length
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def router(self, experts: int) -> np.ndarray:
        """[E, H], of this layer's own."""
        router = self.rng.standard_normal((experts, self.shape.hidden), dtype=np.float32)
        self.routers.append(router)
        self.traffic.always_bytes += router.nbytes
        self.traffic.float_products += router.size
        return router

    def add(self, op: str, inputs: list[str], output: str = "", domain: str = "", **attributes: Any) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attributes))
        return output


Layer = Callable[[Graph, str, str], None]  # graph, name of the input, name of the output


@dataclass(frozen=True)
class Model:
    """A written graph."""

    path: Path
    layers: int
    traffic: Traffic  # of one layer
    routers: list[np.ndarray]

    def bytes_per_layer(self, x: np.ndarray) -> float:
        """Bytes of weights that one layer reads for these tokens, the mean over the layers."""
        if not self.routers:
            return float(self.traffic.always_bytes)
        used = [len(np.unique(np.argmax(x @ router.T, axis=1))) for router in self.routers]
        return self.traffic.always_bytes + float(np.mean(used)) * self.traffic.expert_bytes


def traffic_of(shape: Shape, layer: Layer) -> Traffic:
    graph = Graph(shape, np.random.default_rng(0))
    layer(graph, "x", "y")
    return graph.traffic


def layers_in_turn(traffic: Traffic, experts_used: int, working_set: int, at_least: int = 2) -> int:
    """So many layers that `working_set` bytes are read before any of them is read again."""
    touched = traffic.always_bytes + experts_used * traffic.expert_bytes
    return max(-(-working_set // touched), at_least)


def _normalized(graph: Graph, x: str) -> str:
    """As between the layers of a model: without it values grow until a layer has nothing to compute but NaN."""
    return graph.add("LayerNormalization", [x, graph.constant(np.ones(graph.shape.hidden, np.float32))])


def write(
    folder: Path, name: str, shape: Shape, layer: Layer, layers: int, files: WeightFiles, chain: bool = False
) -> Model:
    """`layers` of them side by side (or each fed by the one before it, normalized), and the files that they need."""
    graph = Graph(shape, np.random.default_rng(1))
    outputs = [f"y{i}" for i in range(layers)]
    for i, output in enumerate(outputs):
        layer(graph, _normalized(graph, outputs[i - 1]) if chain and i else "x", output)
    values = [helper.make_tensor_value_info(n, FLOAT, ["tokens", shape.hidden]) for n in ("x", *outputs)]
    proto = helper.make_graph(graph.nodes, name, values[:1], values[-1:] if chain else values[1:], graph.tensors)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("mote", 1), ("com.microsoft", 1))]
    path = folder / f"{name}.onnx"
    path.write_bytes(helper.make_model(proto, opset_imports=opsets, ir_version=10).SerializeToString())
    files.reserve(graph.used)
    per_layer = Traffic(**{key: value // layers for key, value in vars(graph.traffic).items()})
    return Model(path, layers, per_layer, graph.routers)
