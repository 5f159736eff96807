"""What a graph does with the results of its experts, found out by running that part of it.

Exporters write the weighted sum of experts in many ways: masks, scattered gates, stacked results, gathered tokens, index_add. None
of them is matched here. The nodes between the router, the experts and a value are run in ONNX Runtime, with random tokens, and with
a stand-in for each expert that gives its input times a number. What comes out for one number 1 and the others 0 is that expert's
share of every token; where these shares are those of softmax and top-k for all tokens, the value is a mixture of experts.
"""

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from mote_export.onnx_import.constants import computed, recipe
from mote_export.onnx_import.experts import Expert, tokens_behind
from mote_export.onnx_import.graph import STANDARD, constant, made_by, rank, width
from mote_runtime.errors import MoteError

FloatArray = NDArray[np.float64]
TOKENS, TOKENS_PER_EXPERT = 256, 32  # random ones, at least; in several runs where a graph takes few at a time, up to
MOST_RUNS = 64
SYMBOLIC = 37  # size of a dimension that is not fixed
LOGIT_SPREAD = 1.5
TOLERANCE = 1e-3  # of a share, which float16 graphs round
MOST_NODES = 4096  # of the part that is run
MOST_BYTES = 1 << 24  # of a constant in it
MOST_ELEMENTS = 1 << 26  # of tokens
IR_VERSION = 10
MOST_USERS = 64  # of a router's numbers that are looked at for a bias
LOGIT_MOVES = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
STOPS = frozenset({"MatMul", "Gemm", "Conv", "Einsum", "If", "Loop", "Scan", "MatMulInteger", "Attention"})
NUMPY: dict[ir.DataType, type[np.floating[Any]]] = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.DOUBLE: np.float64,
    ir.DataType.BFLOAT16: np.float32,  # the part is run in float32, see _widened
}


@dataclass(frozen=True)
class Router:
    """weight float32 [E, H]: the node gives a token x the numbers weight @ x, to which nothing but zeros is added."""

    node: ir.Node
    weight: NDArray[np.float32]


@dataclass(frozen=True)
class Routing:
    """What was found.

    Attributes:
        order: for each expert of the router, its index among those that were given.
        added: what the value holds beside the experts; None for nothing.
        x: a value of the tokens with the shape of the result.
    """

    order: tuple[int, ...]
    top_k: int
    normalize_topk: bool
    added: ir.Value | None
    x: ir.Value


class NoRoutingError(MoteError):
    """The value is no mixture of these experts; the message says why."""


def meeting_points(graph: ir.Graph, experts: Sequence[Expert]) -> Iterator[ir.Value]:
    """Values that all experts' results go into, and nothing else goes on from them: the nearest first."""
    starts = {expert.down for expert in experts}
    live: dict[ir.Value, int] = {}  # derived values with users to come
    seen = 0
    for node in graph:
        inputs = [item for item in node.inputs if item in live]
        if node in starts:
            seen += 1
        elif not inputs:
            continue
        for item in inputs:
            assert item is not None
            live[item] -= 1
            if live[item] == 0:
                del live[item]
        for output in node.outputs:
            uses = len(output.uses()) + output.is_graph_output()
            if uses:
                live[output] = uses
        if seen == len(starts) and len(live) == 1:
            yield next(iter(live))


def find_router(graph: ir.Graph, experts: Sequence[Expert], opset: int) -> Router:
    """The one linear layer that gives the experts' tokens a number for each expert, or for each but a shared one.

    Raises:
        NoRoutingError: there is none, or there are several, or it has a bias, for which the operator has no place.
    """
    tokens = set(_tokens(experts))
    counts = (len(experts), len(experts) - 1)
    found = []
    for node in graph:
        if (
            node.domain not in STANDARD
            or node.op_type not in ("MatMul", "Gemm")
            or width(node.outputs[0]) not in counts
        ):
            continue
        activation, weight = node.inputs[0], node.inputs[1]
        if activation is None or weight is None or tokens.isdisjoint(tokens_behind(activation)):
            continue
        made = recipe(weight)
        if made is not None:
            with computed(made, opset) as array:
                is_transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
                weight32 = np.array(array if is_transposed else array.T, np.float32)
            alpha = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
            found.append(Router(node, weight32 if alpha == 1.0 else weight32 * np.float32(alpha)))
    if len(found) != 1:
        raise NoRoutingError(f"{len(found)} linear layers of the tokens may be the router, expected 1")
    _check_bias(found[0].node, opset)
    return found[0]


def _check_bias(router: ir.Node, opset: int) -> None:
    """Raises NoRoutingError if a constant is added to the router's numbers that is not zero everywhere.

    Such a bias is asked for by its values: one that is too small to be seen in the shares of random tokens moves others.
    """
    for bias in _biases(router):
        made = recipe(bias)
        if made is None:
            continue  # something that depends on the tokens, which their shares show
        with computed(made, opset) as array:
            is_zero = not np.any(array)
        if not is_zero:
            name = router.name or router.op_type
            raise NoRoutingError(
                f"their router {name} has a bias, {bias.name}, that is not zero, and the operator's has none"
            )


def _biases(router: ir.Node) -> Iterator[ir.Value]:
    """What is added to the numbers that a router gives, by itself or by an Add behind it."""
    if router.op_type == "Gemm" and len(router.inputs) > 2 and router.inputs[2] is not None:
        yield router.inputs[2]
    waiting, seen = [router.outputs[0]], 0
    while waiting and seen < MOST_USERS:
        value = waiting.pop()
        for node in value.consumers():
            seen += 1
            if node.domain in STANDARD and node.op_type in LOGIT_MOVES:
                waiting.append(node.outputs[0])
            elif made_by(node.outputs[0], "Add", "Sub") is not None:
                yield from (item for item in node.inputs if item is not None and item is not value)
                waiting.append(node.outputs[0])


def find_routing(experts: Sequence[Expert], router: Router, value: ir.Value, opset: int) -> Routing:
    """How `value` combines the experts.

    Raises:
        NoRoutingError: not as `mote::TernaryMoE` does.
    """
    probe = _Probe(experts, router, value, opset)
    shares, expected_logits = probe.run()
    count = router.weight.shape[0]
    chosen = list(range(len(experts)))
    if count < len(experts):
        chosen = [index for index in chosen if not np.allclose(shares[:, index], 1.0, atol=TOLERANCE)]
    always = [index for index in range(len(experts)) if index not in chosen]
    if len(chosen) != count:
        raise NoRoutingError(f"{len(chosen)} experts are chosen among, the router has {count}")
    if not shares.any(axis=0).all():
        raise NoRoutingError("an expert was chosen for none of the random tokens, which tells nothing about it")
    if always and probe.added is not None:
        raise NoRoutingError("two other values are added to the experts")
    added = experts[always[0]].y if always else probe.added
    for top_k in range(1, count + 1):
        for normalize in (False, True):
            order = _order(shares[:, chosen], gates(expected_logits, top_k, normalize))
            if order is not None:
                return Routing(tuple(chosen[index] for index in order), top_k, normalize, added, probe.x)
    raise NoRoutingError("the shares of its experts are not those of softmax and top-k of the router")


def gates(logits: FloatArray, top_k: int, normalize: bool) -> FloatArray:
    """[T, E]: the share of each expert, step 3 and 4 of docs/operator.md."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rank = np.argsort(np.argsort(-logits, axis=1, kind="stable"), axis=1, kind="stable")
    g: FloatArray = np.where(rank < top_k, p, 0.0)
    return g / g.sum(axis=1, keepdims=True) if normalize else g


def _order(shares: FloatArray, expected: FloatArray) -> list[int] | None:
    """For each expected column the one that equals it."""
    difference = np.abs(shares[:, :, None] - expected[:, None, :]).max(axis=0)
    order = [int(index) for index in difference.argmin(axis=0)]
    is_same = len(set(order)) == len(order) and bool((difference.min(axis=0) < TOLERANCE).all())
    return order if is_same else None


def _tokens(experts: Sequence[Expert]) -> list[ir.Value]:
    """What all experts' tokens come from, the nearest first."""
    common = tokens_behind(experts[0].x)
    for expert in experts[1:]:
        behind = set(tokens_behind(expert.x))
        common = [value for value in common if value in behind]
    return common


def _between(value: ir.Value, ends: Set[ir.Value], router: ir.Node) -> list[ir.Node]:
    """The nodes that make `value` of `ends` and constants, in any order.

    Raises:
        NoRoutingError: there are too many, or it takes something else: an input of the graph, or another layer than the router.
    """
    nodes: dict[ir.Node, None] = {}
    waiting = [value]
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if current in ends or constant(current) is not None or node in nodes:
            continue
        if node is None:
            raise NoRoutingError(f"it depends on {current.name}")
        if node is not router and (node.domain not in STANDARD or node.op_type in STOPS):
            raise NoRoutingError(f"it depends on {node.op_type} {node.name}")
        nodes[node] = None
        if len(nodes) > MOST_NODES:
            raise NoRoutingError(f"more than {MOST_NODES} nodes lie between the router and the sum")
        waiting.extend(item for item in node.inputs if item is not None)
    return list(nodes)


class _Probe:
    """The part of a graph around its experts, to be run."""

    def __init__(self, experts: Sequence[Expert], router: Router, value: ir.Value, opset: int) -> None:
        self.experts, self.router, self.value, self.opset = experts, router, value, opset
        self.results = {expert.y: f"mote_share_{index}" for index, expert in enumerate(experts)}
        self.tokens = _tokens(experts)
        if not self.tokens:
            raise NoRoutingError("its experts take different tokens")
        # The farthest one: shapes that the graph asks for are often those of the input before it was made two-dimensional.
        self.source = self.tokens[-1]
        if self.source.dtype not in NUMPY or self.source.shape is None:
            raise NoRoutingError(f"its tokens {self.source.name} are of unknown shape or of type {self.source.dtype}")
        self.shape = [size if isinstance(size, int) else SYMBOLIC for size in self.source.shape]
        if min(self.shape) < 1 or math.prod(self.shape) > MOST_ELEMENTS:
            raise NoRoutingError(f"its tokens have shape {self.shape}")
        self.nodes, self.sides = self._parts()
        made = {output for node in self.nodes for output in node.outputs}
        self.shown = [token for token in self.tokens if token in made]
        self.added: ir.Value | None = None
        self.x = self.source
        self.session = self._session()

    def _parts(self) -> tuple[list[ir.Node], list[ir.Value]]:
        """Nodes to run, and values from elsewhere that are added on the way."""
        ends = {self.source, *self.results}
        inside = self._derived()
        nodes: dict[ir.Node, None] = dict.fromkeys(inside)
        sides: dict[ir.Value, None] = {}
        taken = [item for node in inside for item in node.inputs if item is not None]
        for value in (*taken, *(expert.x for expert in self.experts), *self.tokens):
            if value in self.results or value.producer() in nodes:
                continue
            try:
                nodes |= dict.fromkeys(_between(value, ends, self.router.node))
            except NoRoutingError:
                if value.dtype not in NUMPY or rank(value) != rank(self.value):
                    raise
                sides[value] = None
        return list(nodes), list(sides)

    def _session(self) -> ort.InferenceSession:
        constants = _constants(self.nodes)
        protos = [_widened(ir.serde.serialize_node(node)) for node in self.nodes]
        protos += [
            onnx.helper.make_node("Mul", [expert.x.name, self.results[expert.y]], [expert.y.name])
            for expert in self.experts
        ]
        fed = [
            onnx.helper.make_tensor_value_info(
                side.name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(_numpy(side))), None
            )
            for side in (self.source, *self.sides)
        ]
        fed += [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in self.results.values()]
        outputs = [onnx.helper.make_empty_tensor_value_info(item.name) for item in (self.value, *self.shown)]
        ordered = _sorted(protos, {*constants, *(info.name for info in fed)})
        graph = onnx.helper.make_graph(ordered, "probe", fed, outputs, list(constants.values()))
        imports = [onnx.helper.make_opsetid("", self.opset)]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
        try:
            return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of ONNX Runtime's own kinds, which have no common base
            raise _cannot_run(error) from error

    def _derived(self) -> list[ir.Node]:
        """The nodes from the experts to the value."""
        above: set[ir.Value | None] = set(self.results)
        last = self.value.producer()
        assert last is not None
        assert last.graph is not None
        nodes = []
        for node in last.graph:
            if not above.isdisjoint(node.inputs) and above.isdisjoint(node.outputs):
                nodes.append(node)
                above |= set(node.outputs)
            if node is last:
                break
        if any(node.domain not in STANDARD or node.op_type in ("If", "Loop", "Scan") for node in nodes):
            raise NoRoutingError("its experts are combined by operators of another domain or within a subgraph")
        return nodes

    def run(self) -> tuple[FloatArray, FloatArray]:
        """Shares [T, experts] of random tokens, and logits [T, E] of the router for them."""
        rng = np.random.default_rng(0)
        tokens = int(np.prod(self.shape[:-1]))
        wanted = max(TOKENS, TOKENS_PER_EXPERT * len(self.experts))
        runs = min(MOST_RUNS, -(-wanted // max(1, tokens)))
        parts = [self._run_once(rng) for _ in range(runs)]
        return np.concatenate([shares for shares, _ in parts]), np.concatenate([logits for _, logits in parts])

    def _run_once(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        x = self._random_tokens(rng)
        flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
        feeds: dict[str, Any] = {str(self.source.name): x}
        for side in self.sides:
            shape = self.shape if rank(side) == len(self.shape) else flat.shape
            feeds[str(side.name)] = rng.standard_normal(shape).astype(_numpy(side))
        none = dict.fromkeys(self.results.values(), np.array(0.0, np.float32))
        base, *shown = self._run(feeds | none)
        if base.size != flat.size or base.shape[-1] != flat.shape[-1]:
            raise NoRoutingError(f"it has shape {list(base.shape)} for tokens {list(x.shape)}")
        self.added = self._find_added(base, feeds)
        shapes = dict(zip(self.shown, (array.shape for array in shown), strict=True)) | {self.source: x.shape}
        fitting = [token for token, shape in shapes.items() if shape == base.shape]
        if not fitting:
            raise NoRoutingError(f"it has shape {list(base.shape)}, its tokens {list(x.shape)}")
        self.x = fitting[0]
        limit = TOLERANCE * max(1.0, float(np.abs(base).max())) * float(np.abs(flat).max())
        shares = np.empty((len(flat), len(self.experts)))
        for index, name in enumerate(self.results.values()):
            y = self._run(feeds | none | {name: np.array(1.0, np.float32)})[0]
            part = (y - base).reshape(flat.shape).astype(np.float64)
            shares[:, index] = (part * flat).sum(axis=1) / (flat * flat).sum(axis=1)
            if not np.abs(part - shares[:, index, None] * flat).max() <= limit:
                raise NoRoutingError("a token's result depends on other tokens, or on more than its share of an expert")
        return shares, flat @ self.router.weight.T.astype(np.float64)

    def _run(self, feeds: dict[str, Any]) -> list[Any]:
        try:
            return list(self.session.run(None, feeds))
        except Exception as error:  # of ONNX Runtime's own kinds
            raise _cannot_run(error) from error

    def _random_tokens(self, rng: np.random.Generator) -> NDArray[np.floating]:
        """Integers up to 127 times one power of two, 127 among those of each token: rounding them to 8 bits changes nothing."""
        codes = rng.integers(-126, 127, self.shape)
        codes.reshape(-1, self.shape[-1])[:, 0] = 127
        spread = float((codes.reshape(-1, self.shape[-1]) @ self.router.weight.T.astype(np.float64)).std())
        power = np.floor(np.log2(LOGIT_SPREAD / spread)) if spread > 0 else 0.0
        return (codes * 2.0 ** max(-20.0, min(power, 4.0))).astype(_numpy(self.source))

    def _find_added(self, base: NDArray[Any], feeds: dict[str, Any]) -> ir.Value | None:
        """What the result is without the experts: nothing, or one of the values that were fed."""
        if np.abs(base).max() <= TOLERANCE:
            return None
        for value in (*self.sides, self.source):
            fed = feeds[str(value.name)]
            if fed.shape == base.shape and np.allclose(base, fed, atol=TOLERANCE):
                return value
        raise NoRoutingError("what is added to its experts is not one value")


def _numpy(value: ir.Value) -> type[np.floating[Any]]:
    assert value.dtype is not None
    return NUMPY[value.dtype]


def _cannot_run(error: Exception) -> NoRoutingError:
    return NoRoutingError(
        f"the part around its experts cannot be run: {(str(error) or type(error).__name__).splitlines()[0]}"
    )


def _constants(nodes: Sequence[ir.Node]) -> dict[str, onnx.TensorProto]:
    """The constants that nodes take, by name."""
    found = {}
    for item in (item for node in nodes for item in node.inputs):
        tensor = constant(item)
        if item is None or tensor is None or item.name is None:
            continue
        if tensor.nbytes > MOST_BYTES:
            raise NoRoutingError(
                f"it depends on {item.name}, which has {tensor.nbytes} bytes: that is no part of a router"
            )
        found[item.name] = _widened_tensor(
            ir.serde.serialize_tensor(ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=item.name))
        )
    return found


def _widened(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node in float32 where it is in bfloat16, for which ONNX Runtime has few operators on CPUs; in place."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == onnx.TensorProto.BFLOAT16:
            attribute.i = onnx.TensorProto.FLOAT
        elif attribute.HasField("t"):
            attribute.t.CopyFrom(_widened_tensor(attribute.t))
    return node


def _widened_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != onnx.TensorProto.BFLOAT16:
        return tensor
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _sorted(protos: list[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """Each after those whose results it takes."""
    known = known | {""}
    left, ordered = protos, []
    while left:
        ready = [proto for proto in left if known.issuperset(proto.input)]
        if not ready:
            raise NoRoutingError(f"it depends on {min(set(left[0].input) - known)}")
        ordered += ready
        known |= {name for proto in ready for name in proto.output}
        left = [proto for proto in left if not known.issuperset(proto.output)]
    return ordered
