"""What onnx's and ONNX Runtime's own tools make of an export (docs/onnx-tools.md), and that schema, operators and plugin agree."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import inliner, shape_inference
from onnxruntime.quantization.shape_inference import quant_pre_process
from operator_cases import MATMUL_CASES, QUANTIZED_CASES, ROUTED_CASES, TORCH_NAMES, Layer, onnx_model

import mote_export.ops  # noqa: F401  registers torch.ops.mote
from mote_export import onnx_schemas
from mote_runtime import get_library_path

ROOT = Path(__file__).parent.parent
GRAPHS = ("vision.onnx", "embedding.onnx", "model.onnx")
PLUGIN_SOURCES = {name: f"{op}.cpp" for name, op in TORCH_NAMES.items()}
PLUGIN_TYPES = {"float": "kFloat", "uint8": "kUint8", "bfloat16": "kBfloat16"}
EXAMPLES = {cases[0].layer.op_type: cases[0].layer for cases in (ROUTED_CASES, MATMUL_CASES, QUANTIZED_CASES)}


@pytest.fixture(scope="module")
def folder(demo_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the graphs, as some tools write beside them."""
    copy = tmp_path_factory.mktemp("tools")
    for path in (demo_export / "onnx").glob("*.onnx*"):
        shutil.copyfile(path, copy / path.name)
    return copy


def logits(path: Path) -> NDArray[np.float32]:
    """Of three tokens, by the plugin."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    session = ort.InferenceSession(str(path), options)
    sizes = {"sequence_length": 3, "total_sequence_length": 3, "past_sequence_length": 0}
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in session.get_inputs():
        shape = [sizes.get(size, size) for size in value.shape]
        feed[value.name] = np.ones(shape, types[value.type]) * (
            rng.standard_normal(shape) if "float" in value.type else 1
        )
        feed[value.name] = feed[value.name].astype(types[value.type])
    result: NDArray[np.float32] = session.run(["logits"], feed)[0]
    return result


@pytest.fixture(scope="module")
def expected(folder: Path) -> NDArray[np.float32]:
    return logits(folder / "model.onnx")


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("operator", onnx_schemas.OPERATORS, ids=lambda operator: operator.name)
def test_schema_agrees_with_torch_the_plugin_and_the_document(operator: onnx_schemas.Operator) -> None:
    arguments = getattr(torch.ops.mote, TORCH_NAMES[operator.name]).default._schema.arguments
    names = [*(item.name for item in operator.inputs), *(item.name for item in operator.attributes)]
    assert names == [argument.name for argument in arguments]
    optional = {item.name for item in operator.inputs if item.is_optional}
    assert optional == {argument.name for argument in arguments if isinstance(argument.type, torch.OptionalType)}

    source = (ROOT / "runtime" / "onnxruntime" / PLUGIN_SOURCES[operator.name]).read_text()
    found = re.findall(r'\{"(\w+)", (k\w+)(, true)?\}', source.partition("kInputs[] =")[2].partition("};")[0])
    assert found == [
        (item.name, PLUGIN_TYPES[item.dtype], ", true" if item.is_optional else "") for item in operator.inputs
    ]
    read = re.findall(r'read_(integer|string)\("(\w+)"', source)
    kinds = {"integer": "INT", "string": "STRING"}
    assert {(name, kinds[kind]) for kind, name in read} == {(item.name, item.type) for item in operator.attributes}

    document = (
        (ROOT / "docs" / "operator.md").read_text().partition(f"## `mote::{operator.name}`")[2].partition("\n## ")[0]
    )
    rows = re.findall(r"^\| `(\w+)`(?: \(\w\))? \| (\w+) \|", document, re.MULTILINE)
    types = {"float": "float32"}
    documented = [(item.name, types.get(item.dtype, item.dtype)) for item in operator.inputs]
    assert rows[: len(documented)] == documented
    for item in operator.attributes:
        assert f"`{item.name}`" in document


@pytest.mark.parametrize("name", EXAMPLES)
def test_registered_schema_infers_and_checks(name: str) -> None:
    """In a process of its own, as a schema stays registered."""
    layer: Layer = EXAMPLES[name]
    model = onnx_model(layer, ("batch", 7, layer.hidden_size))
    assert not shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.HasField("shape")
    code = """
import sys, onnx
from mote_export import onnx_schemas
assert "torch" not in sys.modules
onnx_schemas.register()
onnx_schemas.register()
model = onnx.ModelProto.FromString(sys.stdin.buffer.read())
inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
print([dim.dim_param or dim.dim_value for dim in inferred.graph.output[0].type.tensor_type.shape.dim])
for damage in ("nothing", "attribute", "input", "width"):
    damaged = onnx.ModelProto.FromString(model.SerializeToString())
    for axis in "abc":  # the checker asks for the shape of an output
        damaged.graph.output[0].type.tensor_type.shape.dim.add(dim_param=axis)
    if damage == "attribute":
        del damaged.graph.node[0].attribute[0]
    elif damage == "input":
        del damaged.graph.node[0].input[1:]
    elif damage == "width":
        damaged.graph.input[0].type.tensor_type.shape.dim[-1].dim_value += 1
    try:
        onnx.checker.check_model(damaged)
        onnx.shape_inference.infer_shapes(damaged, strict_mode=True)
        print(damage, "accepted")
    except Exception as error:
        print(damage, "refused", str(error).replace(chr(10), " "))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], input=model.SerializeToString(), capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
    lines = run.stdout.decode().splitlines()
    width = layer.attributes.get("out_features", layer.hidden_size)
    assert lines[0] == f"['batch', 7, {width}]"
    found = [line.split()[:2] for line in lines[1:]]
    assert found == [["nothing", "accepted"], *([damage, "refused"] for damage in ("attribute", "input", "width"))], (
        lines
    )
    assert f"expected {layer.hidden_size}" in lines[4]


@pytest.mark.parametrize("name", GRAPHS)
def test_every_value_has_a_type_and_nodes_have_names(folder: Path, name: str) -> None:
    onnx.checker.check_model(str(folder / name), full_check=True)
    model = onnx.load(folder / name, load_external_data=False)
    assert (model.producer_name, model.model_version) == ("mote", 1)
    assert model.producer_version
    assert model.doc_string
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        for output in node.output:
            assert known[output].type.tensor_type.elem_type, output
            assert known[output].type.tensor_type.HasField("shape"), output
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(name.startswith("/") for name in names)
    assert str(ROOT).encode() not in (folder / name).read_bytes()  # no paths of the machine that exported


def test_decoder_says_what_it_is(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 21, "com.microsoft": 1, "mote": 1}
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["mote.packing"] == "2bit"
    assert properties["mote.shared_format"] == "bf16"
    nodes = [node for node in model.graph.node if node.domain == "mote"]
    assert [node.name for node in nodes] == [f"/decoder/layers.{i}/mlp/experts/TernaryMoE" for i in range(len(nodes))]
    known = {value.name: dims(value) for value in model.graph.value_info}
    assert known[nodes[0].output[0]] == [1, "sequence_length", 128]
    assert nodes[0].doc_string
    weights = [tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1]
    assert not [weight for weight in weights if weight.startswith("val_")]


def test_quantization_preprocessing(
    folder: Path, expected: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symbolic shape inference knows no operators of other domains; it takes a hint to leave them as they are."""
    monkeypatch.chdir(tmp_path)  # where it fails, it leaves the model in the current folder
    with pytest.raises(Exception, match="Incomplete symbolic shape inference"):
        quant_pre_process(folder / "model.onnx", tmp_path / "out.onnx", skip_optimization=True)
    quant_pre_process(
        folder / "model.onnx", tmp_path / "out.onnx", skip_optimization=True, guess_output_rank=True, auto_merge=True
    )
    np.testing.assert_array_equal(logits(tmp_path / "out.onnx"), expected)


def test_one_layer_can_be_cut_out(folder: Path, tmp_path: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    node = next(node for node in graph.node if node.op_type == "TernaryMoE")
    onnx.utils.extract_model(
        str(folder / "model.onnx"), str(tmp_path / "layer.onnx"), [node.input[0]], [node.output[0]]
    )
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    session = ort.InferenceSession(str(tmp_path / "layer.onnx"), options)
    x = np.random.default_rng(0).standard_normal((1, 5, 128), dtype=np.float32)
    assert session.run(None, {node.input[0]: x})[0].shape == (1, 5, 128)


def test_embedding_and_decoder_can_be_merged(folder: Path) -> None:
    models = [
        onnx.compose.add_prefix(onnx.load(folder / name), prefix)
        for name, prefix in (("embedding.onnx", "e/"), ("model.onnx", "d/"))
    ]
    merged = onnx.compose.merge_models(*models, io_map=[("e/inputs_embeds", "d/inputs_embeds")])
    onnx.checker.check_model(merged)
    assert [value.name for value in merged.graph.input][:2] == ["e/input_ids", "e/image_features"]


def test_version_converter(folder: Path, expected: NDArray[np.float32], tmp_path: Path) -> None:
    onnx.save(onnx.version_converter.convert_version(onnx.load(folder / "model.onnx"), 22), tmp_path / "model.onnx")
    np.testing.assert_array_equal(logits(tmp_path / "model.onnx"), expected)


def test_optimized_model_can_be_saved_beside_the_weights(folder: Path, expected: NDArray[np.float32]) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    ort.InferenceSession(str(folder / "model.onnx"), options)
    np.testing.assert_array_equal(logits(folder / "optimized.onnx"), expected)
    (folder / "optimized.onnx").unlink()


def test_conversion_to_ort_format(folder: Path, expected: NDArray[np.float32], tmp_path: Path) -> None:
    """What reduced builds for phones read, and the list of operators that they are built with."""
    command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(folder / "model.onnx")]
    library = str(get_library_path("onnxruntime"))
    options = ["--custom_op_library", library, "--output_dir", str(tmp_path), "--optimization_style", "Fixed"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(logits(tmp_path / "model.ort"), expected)
    config = (tmp_path / "model.required_operators.config").read_text()
    assert "com.microsoft;1;GroupQueryAttention" in config
    assert "mote;1;TernaryMoE" in config


def test_inlining_leaves_a_plain_export_alone(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    assert len(inliner.inline_local_functions(model).graph.node) == len(model.graph.node)


def test_schemas_are_known_only_within() -> None:
    """Rewriting a model must not change what onnx says of others in the same process."""
    known = [
        onnx.defs.has(operator.name, onnx_schemas.VERSION, onnx_schemas.DOMAIN) for operator in onnx_schemas.OPERATORS
    ]
    with onnx_schemas.registered():
        assert all(
            onnx.defs.has(operator.name, onnx_schemas.VERSION, onnx_schemas.DOMAIN)
            for operator in onnx_schemas.OPERATORS
        )
    after = [
        onnx.defs.has(operator.name, onnx_schemas.VERSION, onnx_schemas.DOMAIN) for operator in onnx_schemas.OPERATORS
    ]
    assert after == known == [False] * len(known)
