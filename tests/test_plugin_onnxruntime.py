"""L3: both operators in ONNX Runtime against the torch reference, bit for bit, and what happens when one is wrong."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from operator_cases import (
    CASES,
    INPUTS,
    SHARED,
    Array,
    Case,
    Layer,
    assert_same_bits,
    onnx_model,
    random_layer,
    random_matmul,
    random_quantized,
    random_tokens,
    reference,
)

from mote_runtime import get_library_path, library
from mote_runtime.errors import BackendError

PLAIN = random_layer(4, 40, 24, 2)
BF16 = random_layer(4, 40, 24, 2, shared_format="bf16")
INT8 = random_layer(4, 40, 24, 2, shared_format="int8", packing="1.6bit")
INT4 = random_layer(4, 40, 24, 2, shared_format="int4", shared_group_size=32)
MATMUL = random_matmul(40, 21, "1.6bit")
QUANTIZED = random_quantized(40, 21, "int4", 32)
ONE_OF_EACH = [
    pytest.param(layer, id=name)
    for name, layer in (
        ("plain", PLAIN),
        ("bf16", BF16),
        ("int8", INT8),
        ("int4", INT4),
        ("matmul", MATMUL),
        ("quantized", QUANTIZED),
    )
]


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


@pytest.mark.parametrize("seed", range(30))
def test_bits_equal_the_reference_for_random_sizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, hidden, intermediate, tokens = (int(rng.integers(1, limit)) for limit in (9, 150, 150, 40))
    top_k, packing, (shared, group) = (
        int(rng.integers(1, experts + 1)),
        ("2bit", "1.6bit")[seed // 2 % 2],
        SHARED[seed % 6],
    )
    layer = random_layer(
        experts,
        hidden,
        intermediate,
        top_k,
        seed % 2,
        seed=seed,
        packing=packing,
        shared_format=shared,
        shared_group_size=group,
    )
    x = random_tokens(tokens, hidden, seed=seed) * np.float32(10.0 ** rng.integers(-6, 6))
    assert_same_bits(run(layer, x, threads=2), reference(layer, x))
    matmul = random_matmul(hidden, intermediate, packing, seed=seed)
    assert_same_bits(run(matmul, x, threads=2), reference(matmul, x))


@pytest.mark.parametrize("layer", ONE_OF_EACH)
def test_rows_that_are_not_finite_become_nan_and_no_other(layer: Layer) -> None:
    x = random_tokens(6, 40)
    x[1, 3], x[3, 39], x[4, 0] = np.nan, np.inf, -np.inf
    y = run(layer, x)
    assert np.isnan(y).all(axis=1).tolist() == [False, True, False, True, True, False]
    assert (y[[1, 3, 4]].view(np.uint32) == 0x7FC00000).all()
    assert_same_bits(y, reference(layer, x))


@pytest.mark.parametrize("layer", ONE_OF_EACH)
def test_the_shape_of_the_output_is_inferred(layer: Layer) -> None:
    output = session(onnx_model(layer, ("batch", 7, 40))).get_outputs()[0]
    width = layer.attributes.get("out_features", 40)
    assert (output.shape, output.type) == (["batch", 7, width], "tensor(float)")


@pytest.mark.parametrize("layer", ONE_OF_EACH)
def test_of_a_shape_that_is_not_known_nothing_is_said(layer: Layer, capfd: pytest.CaptureFixture[str]) -> None:
    """Else ONNX Runtime would warn in each run that the output has not the shape it was told."""
    x = random_tokens(2, 40)
    for has_rank in (True, False):
        model = onnx_model(layer, (2, 40))
        if has_rank:
            model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
        else:
            model.graph.input[0].type.tensor_type.ClearField("shape")
        talkative = options()
        talkative.log_severity_level = 2
        assert_same_bits(session(model, talkative).run(None, {"x": x})[0], reference(layer, x))
    assert capfd.readouterr().err == ""


def test_empty_names_at_the_end_are_absent_inputs() -> None:
    x = random_tokens(3, 40)
    for layer in (PLAIN, BF16):
        model = onnx_model(layer, ("n", 40))
        model.graph.node[0].input.extend([""] * (len(INPUTS["TernaryMoE"]) + 1 - len(model.graph.node[0].input)))
        assert_same_bits(session(model).run(None, {"x": x})[0], reference(layer, x))


def test_one_session_serves_all_shapes() -> None:
    layer = random_layer(4, 40, 24, 2)
    moe = session(onnx_model(layer, ("tokens", 40)), options(threads=2))
    for tokens in (1, 64, 0, 3, 1, 200):
        x = random_tokens(tokens, 40, seed=tokens)
        assert_same_bits(moe.run(None, {"x": x})[0], reference(layer, x))


def replaced(name: str, change: Callable[[Array], Array]) -> Callable[[Layer], Layer]:
    return lambda layer: layer.with_weights(**{name: change(layer.weights[name])})


def attributes(**changes: int | str) -> Callable[[Layer], Layer]:
    return lambda layer: layer.with_attributes(**changes)


def without(attribute: str) -> Callable[[Layer], Layer]:
    return lambda layer: replace(layer, attributes={k: v for k, v in layer.attributes.items() if k != attribute})


def filled(value: float) -> Callable[[Array], Array]:
    return lambda w: np.full_like(w, value)


@pytest.mark.parametrize(
    ("layer", "damage", "sentence"),
    [
        (PLAIN, attributes(layout_version=2), "layout_version is 2, but this version of mote reads 1"),
        (PLAIN, attributes(num_experts=3), "router has size 4 in dimension 0, but .* ask for 3"),
        (PLAIN, attributes(num_experts=0), "num_experts is 0, but must be 1 to 256"),
        (PLAIN, attributes(top_k=5), "top_k is 5, but must be 1 to 4"),
        (PLAIN, attributes(top_k=0), "top_k is 0, but must be 1 to 4"),
        (PLAIN, attributes(normalize_topk=2), "normalize_topk is 2, but must be 0 or 1"),
        (PLAIN, attributes(intermediate_size=48), "gate_up_packed has size 2 in dimension 1, but .* ask for 3"),
        (PLAIN, attributes(intermediate_size=-1), "intermediate_size is -1, but must be 1 to 131072"),
        (PLAIN, attributes(activation="gelu"), 'activation is "gelu", but .* knows only "silu"'),
        (PLAIN, attributes(packing="5trit"), 'packing is "5trit", but .* knows only "2bit" and "1.6bit"'),
        (PLAIN, attributes(packing="1.6bit"), "gate_up_packed has size 3 in dimension 3, but .* ask for 2"),
        (PLAIN, attributes(packing="x" * 100), "attribute 'packing' is missing, .* longer than 63 bytes"),
        (PLAIN, attributes(packing=2), "attribute 'packing' is missing, not a string"),
        (PLAIN, attributes(top_k="2"), "attribute 'top_k' is missing or not an integer"),
        (PLAIN, without("top_k"), "attribute 'top_k' is missing"),
        (PLAIN, without("activation"), "attribute 'activation' is missing"),
        (PLAIN, without("shared_format"), "attribute 'shared_format' is missing"),
        (PLAIN, without("shared_group_size"), "attribute 'shared_group_size' is missing"),
        (PLAIN, replaced("router", lambda w: w[:, :32]), "gate_up_packed has size 3 in dimension 3, but .* ask for 2"),
        (PLAIN, replaced("router", lambda w: w[:, :0]), "hidden_size is 0, but must be 1 to"),
        (PLAIN, replaced("router", lambda w: w.reshape(-1)), "router has rank 1, expected 2"),
        (PLAIN, replaced("router", lambda w: w.reshape((1,) * 7 + w.shape)), "input 'router' has rank 9"),
        (PLAIN, replaced("router", filled(np.inf)), "router has the value inf at index 0"),
        (PLAIN, replaced("gate_up_packed", lambda w: w[:, :1]), "gate_up_packed has size 1 in dimension 1"),
        (PLAIN, replaced("gate_up_packed", lambda w: w[..., :63]), "gate_up_packed has size 63 in dimension 4"),
        (PLAIN, replaced("gate_up_scale", lambda w: w[:, :1]), "gate_up_scale has size 1 in dimension 1"),
        (PLAIN, replaced("gate_up_scale", filled(np.nan)), "gate_up_scale has the value nan at index 0"),
        (PLAIN, replaced("down_packed", lambda w: w[:3]), "down_packed has size 3 in dimension 0"),
        (PLAIN, replaced("down_scale", lambda w: -w), "down_scale has the value -"),
        (PLAIN, replaced("down_scale", lambda w: w[:0]), "down_scale has size 0 in dimension 0"),
        (PLAIN, attributes(shared_format="int8"), "shared_gate_up is missing"),
        (PLAIN, attributes(shared_format="int2"), 'shared_format is "int2", but .* knows only "none", "bf16"'),
        (PLAIN, attributes(shared_group_size=32), "shared_group_size is 32, but must be 0 for shared_format none"),
        (INT8, attributes(shared_format="none"), "shared_gate_up is given, but shared_format none has none"),
        (INT8, attributes(shared_format="bf16"), "shared_gate_up has size 10 in dimension 2, but .* ask for 20"),
        (INT8, attributes(shared_group_size=32), "shared_group_size is 32, but must be 0 for shared_format int8"),
        (INT4, attributes(shared_group_size=0), "shared_group_size is 0, but must be 32, 64, 128 or 256 for int4"),
        (INT4, attributes(shared_group_size=48), "shared_group_size is 48, but must be 32, 64, 128 or 256 for int4"),
        (INT4, attributes(shared_group_size=64), "shared_gate_up_scale has size 2 in dimension 2, but .* ask for 1"),
        (INT4, lambda layer: layer.without_weights("shared_gate_up"), "shared_gate_up is missing"),
        (INT4, lambda layer: layer.without_weights("shared_gate_up_scale"), "shared_gate_up_scale is missing"),
        (INT4, lambda layer: layer.without_weights("shared_down"), "shared_down is missing"),
        (INT4, lambda layer: layer.without_weights("shared_down_scale"), "shared_down_scale is missing"),
        (INT4, replaced("shared_gate_up", lambda w: w[:0]), "shared_gate_up has size 0 in dimension 0"),
        (INT4, replaced("shared_gate_up", lambda w: w[0]), "shared_gate_up has rank 3, but must have rank 4"),
        (INT4, replaced("shared_down", lambda w: w[:, :2]), "shared_down has size 2 in dimension 1, but .* ask for 3"),
        (INT4, replaced("shared_gate_up_scale", filled(np.nan)), "shared_gate_up_scale has the value -?nan at index 0"),
        (INT4, replaced("shared_down_scale", filled(-1)), "shared_down_scale has the value -1 at index 0"),
        (INT8, replaced("shared_down_scale", filled(np.inf)), "shared_down_scale has the value inf at index 0"),
        (
            BF16,
            lambda layer: layer.with_weights(shared_gate_up_scale=INT8.weights["shared_gate_up_scale"]),
            "shared_gate_up_scale is given, but shared_format bf16 has none",
        ),
        (
            BF16,
            lambda layer: layer.with_weights(shared_down_scale=INT8.weights["shared_down_scale"][:0]),
            "shared_down_scale is given, but shared_format bf16 has none",
        ),
        (MATMUL, attributes(layout_version=0), "layout_version is 0"),
        (MATMUL, attributes(in_features=0), "in_features is 0, but must be 1 to 131072"),
        (MATMUL, attributes(in_features=1 << 18), "in_features is 262144, but must be 1 to 131072"),
        (MATMUL, attributes(in_features=41), "packed has size 2 in dimension 1, but .* ask for 3"),
        (MATMUL, attributes(out_features=-1), "out_features is -1, but must be 1 to"),
        (MATMUL, attributes(out_features=33), "packed has size 2 in dimension 0, but .* ask for 3"),
        (MATMUL, attributes(packing="3bit"), 'packing is "3bit"'),
        (MATMUL, attributes(packing="2bit"), "packed has size 2 in dimension 1, but .* ask for 3"),
        (MATMUL, without("in_features"), "attribute 'in_features' is missing or not an integer"),
        (MATMUL, without("out_features"), "attribute 'out_features' is missing or not an integer"),
        (MATMUL, attributes(out_features="21"), "attribute 'out_features' is missing or not an integer"),
        (MATMUL, replaced("packed", lambda w: w[:0]), "packed has size 0 in dimension 0"),
        (MATMUL, replaced("packed", lambda w: w[..., :63]), "packed has size 63 in dimension 2"),
        (MATMUL, replaced("scale", lambda w: w[0]), "scale has rank 0, but must have rank 1"),
        (MATMUL, replaced("scale", filled(np.nan)), "scale has the value nan"),
        (MATMUL, replaced("scale", filled(-0.5)), "scale has the value -0.5"),
        (QUANTIZED, attributes(layout_version=0), "layout_version is 0"),
        (QUANTIZED, attributes(in_features=41), "weight has size 5 in dimension 1, but .* ask for 6"),
        (QUANTIZED, attributes(out_features=1 << 21), "out_features is 2097152, but must be 1 to 1048576"),
        (QUANTIZED, attributes(format="2bit"), 'format is "2bit"'),
        (QUANTIZED, attributes(group_size=16), "group_size is 16, but must be 32, 64, 128 or 256 for int4"),
        (QUANTIZED, without("format"), "attribute 'format' is missing"),
        (QUANTIZED, without("group_size"), "attribute 'group_size' is missing or not an integer"),
        (QUANTIZED, attributes(format="bf16", group_size=0), "weight has size 5 in dimension 1, but .* ask for 20"),
        (QUANTIZED, replaced("scale", filled(np.nan)), "scale has the value nan"),
        (QUANTIZED, replaced("scale", lambda w: w[..., :15]), "scale has size 15 in dimension 2"),
        (QUANTIZED, replaced("bias", filled(np.inf)), "bias has the value inf at index 0, but must be finite"),
        (QUANTIZED, replaced("bias", lambda w: w[:20]), "bias has size 20 in dimension 0"),
    ],
)
def test_a_wrong_attribute_or_weight_gives_a_sentence(
    layer: Layer, damage: Callable[[Layer], Layer], sentence: str
) -> None:
    with pytest.raises(Exception, match=rf"mote::{layer.op_type} node 'moe': {sentence}"):
        session(onnx_model(damage(layer), ("n", 40)))


@pytest.mark.parametrize(
    ("layer", "weight"),
    [(layer, weight) for layer in (PLAIN, BF16, INT4, MATMUL, QUANTIZED) for weight in layer.weights],
)
def test_weights_must_be_constant(layer: Layer, weight: str) -> None:
    model = onnx_model(layer, ("n", 40), graph_inputs=(weight,))
    with pytest.raises(Exception, match=f"mote::{layer.op_type} node 'moe': input '{weight}' is not a constant"):
        session(model)


@pytest.mark.parametrize(
    ("layer", "weight"), [(layer, weight) for layer in (PLAIN, INT4, MATMUL) for weight in layer.weights]
)
def test_a_weight_of_another_type_is_refused(layer: Layer, weight: str) -> None:
    """By ONNX Runtime itself, which knows the types of the operator's inputs."""
    wrong = np.int8 if layer.weights[weight].dtype == np.uint8 else np.float16
    sentence = rf"tensor\({np.dtype(wrong)}\)' of input parameter \({weight}\) of operator \({layer.op_type}\)"
    with pytest.raises(Exception, match=sentence):
        session(onnx_model(layer.with_weights(**{weight: layer.weights[weight].astype(wrong)}), ("n", 40)))


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
        ((3, 39), "the last dimension of x is 39, expected 40, "),
        ((3, 0), "the last dimension of x is 0, expected 40, "),
        ((), "x has rank 0, expected 1 to 4"),
        ((1, 1, 1, 1, 40), "x has rank 5, expected 1 to 4"),
        ((1,) * 9 + (40,), "input 'x' has rank 10, more than any input of the operator"),
    ],
)
@pytest.mark.parametrize("layer", [PLAIN, MATMUL], ids=["moe", "matmul"])
def test_tokens_of_a_wrong_shape_give_a_sentence(layer: Layer, shape: tuple[int, ...], sentence: str) -> None:
    model = onnx_model(layer, ())
    model.graph.input[0].type.tensor_type.ClearField("shape")
    node = session(model)
    with pytest.raises(Exception, match=f"mote::{layer.op_type} node 'moe': {sentence}"):
        node.run(None, {"x": np.zeros(shape, np.float32)})
    x = random_tokens(2, 40)
    assert_same_bits(node.run(None, {"x": x})[0], reference(layer, x))  # the session stays usable after an error


@pytest.mark.parametrize("layer", [INT4, MATMUL], ids=["moe", "matmul"])
def test_external_data_that_ends_too_early_is_refused(layer: Layer, tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    onnx.save_model(
        onnx_model(layer, ("n", 40)), path, save_as_external_data=True, location=data.name, size_threshold=0
    )
    x = random_tokens(3, 40)
    ort.InferenceSession(path, options()).run(None, {"x": x})
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(Exception, match=r"External initializer: .* file_length: \d+ are out of bounds"):
        ort.InferenceSession(path, options())
    data.unlink()
    with pytest.raises(Exception, match=r"External data path .*model\.onnx\.data"):
        ort.InferenceSession(path, options())


def test_sessions_of_one_process_do_not_disturb_each_other() -> None:
    """Four sessions of different layers, each used by three threads at once."""
    shared = options(threads=2)
    layers = [random_layer(4, 64, 96, 1), INT8, random_layer(8, 33, 50, 8, 1, seed=8), MATMUL]
    sessions = [session(onnx_model(layer, ("n", layer.hidden_size)), shared) for layer in layers]

    def work(job: int) -> None:
        layer, moe = layers[job % 4], sessions[job % 4]
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
    scale = random_layer(1, 16, 16, 1, shared_format="int8").weights["shared_down_scale"]
    layer = random_layer(experts, 16, 16, 1, shared_format="int8").with_weights(
        router=random_tokens(experts, hidden),
        gate_up_packed=np.full((experts, tiles[0], 2, tiles[1], 64), 0x55, np.uint8),
        down_packed=np.full((experts, tiles[1], tiles[0], 64), 0x55, np.uint8),
        shared_gate_up=np.zeros((tiles[0], 2, hidden // 4, 64), np.uint8),
        shared_gate_up_scale=np.broadcast_to(scale, (tiles[0], 2, 1, 16)),
        shared_down=np.zeros((tiles[1], intermediate // 4, 64), np.uint8),
        shared_down_scale=np.broadcast_to(scale, (tiles[1], 1, 16)),
    )
    path = tmp_path / "model.onnx"
    model = onnx_model(layer.with_attributes(intermediate_size=intermediate), ("n", hidden))
    onnx.save_model(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    weights = (tmp_path / "model.onnx.data").stat().st_size
    assert weights > 96e6
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
