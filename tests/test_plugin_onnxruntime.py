"""L3: the operator in ONNX Runtime against the torch reference, bit for bit, and what happens when something is wrong."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from operator_cases import (
    CASES,
    Array,
    Case,
    Layer,
    assert_same_bits,
    onnx_model,
    random_layer,
    random_tokens,
    reference,
)

from mote_runtime import get_library_path, library
from mote_runtime.errors import BackendError


def options(*, threads: int = 1, library_path: Path | None = None) -> ort.SessionOptions:
    result = ort.SessionOptions()
    result.intra_op_num_threads = threads
    result.log_severity_level = 4  # the errors provoked here are asserted on, not printed
    result.register_custom_ops_library(str(library_path or get_library_path("onnxruntime")))
    return result


def session(model: onnx.ModelProto, session_options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    return ort.InferenceSession(
        model.SerializeToString(), session_options or options(), providers=["CPUExecutionProvider"]
    )


def free_shape(x: Array) -> tuple[int | str, ...]:
    return (*(f"d{axis}" for axis in range(x.ndim - 1)), x.shape[-1])


def run(layer: Layer, x: Array, *, threads: int = 1) -> Array:
    result: Array = session(onnx_model(layer, free_shape(x)), options(threads=threads)).run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bits_equal_the_reference(case: Case, threads: int) -> None:
    x = case.tokens()
    assert_same_bits(run(case.layer, x, threads=threads), reference(case.layer, x))


@pytest.mark.parametrize("seed", range(20))
def test_bits_equal_the_reference_for_random_sizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, hidden, intermediate, tokens = (int(rng.integers(1, limit)) for limit in (9, 150, 150, 40))
    layer = random_layer(experts, hidden, intermediate, int(rng.integers(1, experts + 1)), seed % 2, seed=seed)
    x = random_tokens(tokens, hidden, seed=seed) * np.float32(10.0 ** rng.integers(-6, 6))
    assert_same_bits(run(layer, x, threads=2), reference(layer, x))


def test_rows_that_are_not_finite_become_nan_and_no_other() -> None:
    layer = random_layer(4, 40, 24, 2)
    x = random_tokens(6, 40)
    x[1, 3], x[3, 39], x[4, 0] = np.nan, np.inf, -np.inf
    y = run(layer, x)
    assert np.isnan(y).all(axis=1).tolist() == [False, True, False, True, True, False]
    assert (y[[1, 3, 4]].view(np.uint32) == 0x7FC00000).all()
    assert_same_bits(y, reference(layer, x))


def test_the_shape_of_the_output_is_inferred() -> None:
    layer = random_layer(4, 40, 24, 2)
    output = session(onnx_model(layer, ("batch", 7, 40))).get_outputs()[0]
    assert (output.shape, output.type) == (["batch", 7, 40], "tensor(float)")


def test_one_session_serves_all_shapes() -> None:
    layer = random_layer(4, 40, 24, 2)
    moe = session(onnx_model(layer, ("tokens", 40)), options(threads=2))
    for tokens in (1, 64, 0, 3, 1, 200):
        x = random_tokens(tokens, 40, seed=tokens)
        assert_same_bits(moe.run(None, {"x": x})[0], reference(layer, x))


def replaced(name: str, change: Callable[[Array], Array]) -> Callable[[Layer], Layer]:
    return lambda layer: layer.with_weights(**{name: change(layer.weights[name])})


def without(attribute: str) -> Callable[[Layer], Layer]:
    return lambda layer: Layer({k: v for k, v in layer.attributes.items() if k != attribute}, layer.weights)


@pytest.mark.parametrize(
    ("damage", "found", "expected"),
    [
        (lambda layer: layer.with_attributes(layout_version=2), "2", "1"),
        (lambda layer: layer.with_attributes(num_experts=3), "3", "4"),
        (lambda layer: layer.with_attributes(num_experts=0), "0", "1"),
        (lambda layer: layer.with_attributes(top_k=5), "5", "4"),
        (lambda layer: layer.with_attributes(top_k=0), "0", "1"),
        (lambda layer: layer.with_attributes(normalize_topk=2), "2", "0 or 1"),
        (lambda layer: layer.with_attributes(intermediate_size=48), "2", "3"),
        (lambda layer: layer.with_attributes(intermediate_size=-1), "-1", "1"),
        (lambda layer: layer.with_attributes(activation="gelu"), "gelu", "silu"),
        (lambda layer: layer.with_attributes(packing="5trit"), "5trit", "2bit"),
        (lambda layer: layer.with_attributes(packing="x" * 100), "packing", "63 bytes"),
        (lambda layer: layer.with_attributes(packing=2), "packing", "not a string"),
        (lambda layer: layer.with_attributes(top_k="2"), "top_k", "not an integer"),
        (without("top_k"), "top_k", "missing"),
        (without("activation"), "activation", "missing"),
        (replaced("router", lambda w: w[:, :32]), "3", "2"),
        (replaced("router", lambda w: w.reshape(-1)), "1", "2"),
        (replaced("router", lambda w: w.reshape((1,) * 7 + w.shape)), "router", "9"),
        (replaced("gate_up_packed", lambda w: w[:, :1]), "gate_up_packed", "2"),
        (replaced("gate_up_packed", lambda w: w[..., :63]), "63", "64"),
        (replaced("gate_up_scale", lambda w: w[:, :1]), "gate_up_scale", "2"),
        (replaced("gate_up_scale", lambda w: np.full_like(w, np.nan)), "gate_up_scale", "nan"),
        (replaced("down_packed", lambda w: w[:3]), "3", "4"),
        (replaced("down_scale", lambda w: -w), "down_scale", "-"),
        (replaced("down_scale", lambda w: w[:0]), "0", "4"),
    ],
)
def test_a_wrong_attribute_or_weight_gives_a_sentence(
    damage: Callable[[Layer], Layer], found: str, expected: str
) -> None:
    layer = damage(random_layer(4, 40, 24, 2))
    with pytest.raises(Exception, match="mote::TernaryMoE node 'moe'") as error:
        session(onnx_model(layer, ("n", 40)))
    sentence = str(error.value).split("mote::TernaryMoE", 1)[1]
    assert found in sentence
    assert expected in sentence


@pytest.mark.parametrize("weight", ["router", "gate_up_packed", "gate_up_scale", "down_packed", "down_scale"])
def test_weights_must_be_constant(weight: str) -> None:
    model = onnx_model(random_layer(4, 40, 24, 2), ("n", 40), graph_inputs=(weight,))
    with pytest.raises(Exception, match=f"input '{weight}' is not a constant"):
        session(model)


def test_a_weight_of_another_type_is_refused() -> None:
    layer = random_layer(4, 40, 24, 2)
    with pytest.raises(Exception, match=r"float16.*router"):
        session(onnx_model(layer.with_weights(router=layer.weights["router"].astype(np.float16)), ("n", 40)))
    with pytest.raises(Exception, match=r"int8.*down_packed"):
        session(onnx_model(layer.with_weights(down_packed=layer.weights["down_packed"].view(np.int8)), ("n", 40)))


@pytest.mark.parametrize(
    "inputs", [["x"], ["x", "", "gate_up_packed", "gate_up_scale", "down_packed", "down_scale"], []]
)
def test_missing_inputs_are_refused(inputs: list[str]) -> None:
    model = onnx_model(random_layer(4, 40, 24, 2), ("n", 40))
    del model.graph.node[0].input[:]
    model.graph.node[0].input.extend(inputs)
    with pytest.raises(Exception, match=r"TernaryMoE|moe"):
        session(model)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((3, 39), "the last dimension of x is 39, expected the hidden size 40 of the router"),
        ((3, 0), "the last dimension of x is 0, expected the hidden size 40 of the router"),
        ((), "x has rank 0, expected 1 to 4"),
        ((1, 1, 1, 1, 40), "x has rank 5, expected 1 to 4"),
        ((1,) * 9 + (40,), "input 'x' has rank 10, more than any input of the operator"),
    ],
)
def test_tokens_of_a_wrong_shape_give_a_sentence(shape: tuple[int, ...], sentence: str) -> None:
    model = onnx_model(random_layer(4, 40, 24, 2), ())
    model.graph.input[0].type.tensor_type.ClearField("shape")
    moe = session(model)
    with pytest.raises(Exception, match=f"mote::TernaryMoE node 'moe': {sentence}"):
        moe.run(None, {"x": np.zeros(shape, np.float32)})
    x = random_tokens(2, 40)
    assert moe.run(None, {"x": x})[0].shape == (2, 40), "the session stays usable after an error"


def test_sessions_of_one_process_do_not_disturb_each_other() -> None:
    """Three sessions of different layers, each used by four threads at once."""
    shared = options(threads=2)
    layers = [random_layer(4, 64, 96, 1), random_layer(3, 40, 24, 2, seed=7), random_layer(8, 33, 50, 8, 1, seed=8)]
    sessions = [session(onnx_model(layer, ("n", layer.hidden_size)), shared) for layer in layers]

    def work(job: int) -> None:
        layer, moe = layers[job % 3], sessions[job % 3]
        x = random_tokens(1 + job % 20, layer.hidden_size, seed=job)
        expected = reference(layer, x)
        for _ in range(20):
            assert_same_bits(moe.run(None, {"x": x})[0], expected)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(48)))


def test_sessions_can_come_and_go() -> None:
    layer = random_layer(4, 40, 24, 2)
    model, x = onnx_model(layer, ("n", 40)), random_tokens(3, 40)
    expected = reference(layer, x)
    for _ in range(30):
        assert_same_bits(session(model).run(None, {"x": x})[0], expected)


def test_registering_twice_is_once(tmp_path: Path) -> None:
    """Also through a copy of the library at another path, which the loader takes for another library."""
    copy = shutil.copy(get_library_path("onnxruntime"), tmp_path / "libcopy.so")
    both = options()
    both.register_custom_ops_library(str(get_library_path("onnxruntime")))
    both.register_custom_ops_library(str(copy))
    layer, x = random_layer(4, 40, 24, 2), random_tokens(3, 40)
    assert_same_bits(session(onnx_model(layer, ("n", 40)), both).run(None, {"x": x})[0], reference(layer, x))
    alone = options(library_path=copy)
    assert_same_bits(session(onnx_model(layer, ("n", 40)), alone).run(None, {"x": x})[0], reference(layer, x))


def test_options_of_a_session_do_not_carry_the_operator() -> None:
    """Known, and in the table of docs/plugins.md: their copy remembers the registration and forgets the domain."""
    model = onnx_model(random_layer(4, 40, 24, 2), ("n", 40))
    copied = session(model).get_session_options()
    copied.log_severity_level = 4
    copied.register_custom_ops_library(str(get_library_path("onnxruntime")))
    with pytest.raises(Exception, match=r"TernaryMoE.* is not a registered function/op"):
        session(model, copied)
    session(model, options())


def test_two_nodes_in_a_graph() -> None:
    layers = [random_layer(4, 40, 24, 2), random_layer(2, 40, 64, 1, seed=5)]
    nodes, initializers = [], []
    for index, layer in enumerate(layers):
        names = [f"{name}_{index}" for name in layer.weights]
        inputs = [f"h{index}", *names]
        nodes.append(helper.make_node("TernaryMoE", inputs, [f"h{index + 1}"], domain="mote", **layer.attributes))
        initializers += [
            numpy_helper.from_array(array, name) for array, name in zip(layer.weights.values(), names, strict=True)
        ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 40]) for name in ("h0", "h2")]
    graph = helper.make_graph(nodes, "two", [values[0]], [values[1]], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mote", 1)]
    x = random_tokens(5, 40)
    actual = session(helper.make_model(graph, opset_imports=opsets, ir_version=8)).run(None, {"h0": x})[0]
    assert_same_bits(actual, reference(layers[1], reference(layers[0], x)))


MEASURE_MEMORY = """
import sys
import numpy as np
import onnxruntime as ort
from mote_runtime import get_library_path

def anonymous_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

options = ort.SessionOptions()
options.register_custom_ops_library(str(get_library_path("onnxruntime")))
x = np.ones((1, int(sys.argv[2])), np.float32)
before = anonymous_bytes()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": x})
print(anonymous_bytes() - before)
"""


def test_external_weights_are_read_where_they_are_mapped(tmp_path: Path) -> None:
    """A copy of the weights would be anonymous memory; a mapped file is not."""
    experts, hidden, intermediate = 4, 2048, 8192
    tiles = (intermediate // 16, hidden // 16)
    layer = random_layer(experts, 16, 16, 1).with_weights(
        router=random_tokens(experts, hidden),
        gate_up_packed=np.full((experts, tiles[0], 2, tiles[1], 64), 0x55, np.uint8),
        down_packed=np.full((experts, tiles[1], tiles[0], 64), 0x55, np.uint8),
    )
    path = tmp_path / "model.onnx"
    model = onnx_model(layer.with_attributes(intermediate_size=intermediate), ("n", hidden))
    onnx.save_model(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    weights = (tmp_path / "model.onnx.data").stat().st_size
    assert weights > 48e6
    result = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY, str(path), str(hidden)], capture_output=True, text=True, check=True
    )
    grown = int(result.stdout)
    assert grown < weights / 8, f"{weights} bytes of weights grew the process by {grown} bytes of its own memory"


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_library_folders", lambda: [tmp_path])
    with pytest.raises(BackendError, match=r"^libmote_ort.so is not installed with mote_runtime: .*pip.*make build"):
        get_library_path("onnxruntime")
    with pytest.raises(ValueError, match="'tflite', expected one of 'onnxruntime', 'executorch'"):
        get_library_path("tflite")  # type: ignore[arg-type]
