"""`--portable`: the operators in stock ones, run by runtimes that never see the plugin."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import inliner
from operator_cases import CASES, Array, Case, Layer, assert_same_bits, onnx_model, reference
from tiny import tiny_checkpoint

from mote_export.checkpoint import save_model_pt
from mote_export.cli.export import main
from mote_export.passes import PackOptions, apply_passes, pack_ternary_experts
from mote_export.passes.portable import PortableTernaryMoE
from mote_export.targets.onnx.functions import add_functions
from mote_runtime import get_library_path
from mote_runtime.manifest import Manifest

# One of each kind; the plugins' tests run them all.
NAMES = (
    "one_token", "one_token_rank_1", "sizes_below_16", "sizes_of_1", "one_expert", "normalized_all_experts", "rank_4",
    "zero_tokens", "zero_tokens_in_batch", "all_to_one_expert", "many_experts", "1.6bit_none_odd_sizes", "2bit_bf16_odd_sizes",
    "2bit_int8_zero_tokens", "1.6bit_int8_odd_sizes", "2bit_int4_32_prefill", "1.6bit_int4_128_odd_sizes", "matmul_2bit_one_token",
    "matmul_2bit_rank_1", "matmul_1.6bit_odd_sizes", "matmul_2bit_zero_tokens",
)  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
PORTABLE = [BY_NAME[name] for name in NAMES]


def portable_model(layer: Layer, rank: int, opset: int = 21) -> onnx.ModelProto:
    model = onnx_model(layer, tuple(f"axis_{axis}" for axis in range(rank)))
    model.ir_version, model.opset_import[0].version = 10, opset
    for axis in range(rank):
        model.graph.output[0].type.tensor_type.shape.dim.add(dim_param=f"y_{axis}")
    with_functions = ir.from_proto(model)
    add_functions(with_functions)
    return ir.to_proto(with_functions)


def run(model: onnx.ModelProto, x: Array, *, optimize: bool = True) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    y: Array = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]
    return y


def assert_equal(found: Array, case: Case, x: Array, layer: Layer | None = None) -> None:
    """Bits, except for bf16's sums: their order is the runtime's, and a float32 sum of so few terms is good to 1e-6."""
    expected = reference(layer or case.layer, x)
    if case.layer.attributes.get("shared_format") == "bf16":
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.nanmax(np.abs(expected)))
    else:
        assert_same_bits(found, expected)


@pytest.mark.parametrize("case", PORTABLE, ids=lambda case: case.name)
def test_function_equals_the_operator(case: Case) -> None:
    model = portable_model(case.layer, len(case.shape))
    onnx.checker.check_model(model, full_check=True)
    x = case.tokens()
    assert_equal(run(model, x), case, x)


@pytest.mark.parametrize("opset", range(18, 24))
@pytest.mark.parametrize("name", ["sizes_not_of_16", "1.6bit_int4_64_odd_sizes", "matmul_1.6bit_odd_sizes"])
def test_every_opset_and_rows_that_are_not_finite(name: str, opset: int) -> None:
    """NaN, infinity, values whose products overflow, and zeros; also unoptimized, when weights are unpacked in every run."""
    case = BY_NAME[name]
    x = case.tokens().copy()
    x[0, 0], x[1], x[3] = np.nan, -np.inf, 0
    x[2] *= np.float32(1e37)
    expected = reference(case.layer, x)
    assert 0 < np.isnan(expected).mean() < 1
    model = portable_model(case.layer, 2, opset)
    assert_same_bits(run(model, x), expected)
    if opset == 21:
        assert_same_bits(run(model, x, optimize=False), expected)


@pytest.mark.parametrize("name", ["sizes_not_of_16", "1.6bit_int8_odd_sizes", "2bit_int4_64_odd_sizes"])
def test_damaged_weights_read_as_the_layout_says(name: str) -> None:
    case, rng = BY_NAME[name], np.random.default_rng(3)
    damaged = {
        key: rng.integers(0, 256, value.shape).astype(np.uint8)
        for key, value in case.layer.weights.items()
        if value.dtype == np.uint8
    }
    layer = case.layer.with_weights(**damaged)
    x = case.tokens()
    assert_equal(run(portable_model(layer, len(case.shape)), x), case, x, layer)


def test_inlined_functions_leave_standard_operators() -> None:
    case = BY_NAME["normalized"]
    inlined = inliner.inline_local_functions(portable_model(case.layer, 2))
    onnx.checker.check_model(inlined, full_check=True)
    assert {node.domain for node in inlined.graph.node} == {""}
    x = case.tokens()
    assert_equal(run(inlined, x), case, x)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mote-export model.pt --target onnx --portable`, which verifies it without the plugin."""
    folder = tmp_path_factory.mktemp("portable")
    checkpoint = tiny_checkpoint(top_k=2)
    save_model_pt(folder / "model.pt", checkpoint.model, checkpoint.files)
    options = ["--target", "onnx", "--portable", "--shared-expert", "int8"]
    assert main([str(folder / "model.pt"), "-o", str(folder / "out"), *options]) == 0
    return folder / "out"


def test_export_names_no_plugin(exported: Path) -> None:
    manifest = Manifest.read(exported)
    assert manifest.plugin_library is None
    assert manifest.verification["greedy_tokens_compared"] > 0
    assert not [name for name in manifest.files if name.endswith(".so")]
    decoder = json.loads((exported / "genai_config.json").read_text())["model"]["decoder"]
    assert "custom_ops_library" not in decoder["session_options"]


def test_runs_where_no_plugin_is_installed(exported: Path) -> None:
    """The process finds no plugin and has none of it in its memory."""
    code = """
import sys
from pathlib import Path
import mote_runtime, mote_runtime.library as library
library._library_folders = lambda: []
with mote_runtime.load(sys.argv[1], threads=1) as pipeline:
    print(pipeline.generate_ids([72, 105, 63], max_new_tokens=4))
assert "libmote" not in Path("/proc/self/maps").read_text()
"""
    found = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)) == 4


def test_a_registered_plugin_takes_the_nodes(exported: Path, tmp_path: Path) -> None:
    """The same file is fast where the plugin is: ONNX Runtime's profile names the node."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = ort.InferenceSession(str(exported / "model.onnx"), options)
    feed = {
        "inputs_embeds": np.random.default_rng(0).standard_normal((1, 3, 64), dtype=np.float32),
        "attention_mask": np.ones((1, 3), np.int64),
    }
    feed |= {
        f"past_key_values.{i}.{part}": np.zeros((1, 2, 0, 16), np.float32) for i in (0, 1) for part in ("key", "value")
    }
    found = session.run(["logits"], feed)[0]
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    assert kernels.count("TernaryMoE") == 2
    assert "MatMulInteger" not in kernels
    stock = ort.InferenceSession(str(exported / "model.onnx")).run(["logits"], feed)[0]
    np.testing.assert_allclose(stock, found, atol=1e-5 * float(np.abs(found).max()))


def test_executorch_runs_the_layer_without_the_plugin() -> None:
    """On portable kernels, whose float32 steps leave some rows a few units in the last place off."""
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib

    sizes = {"hidden_size": 40, "intermediate_size": 100, "num_experts": 3, "top_k": 2, "normalize_topk": True}
    holder = torch.nn.ModuleDict({"layer": tiny_checkpoint(layers=1, **sizes).model.mote_layers()[0]})
    apply_passes(holder, [pack_ternary_experts(PackOptions("1.6bit", "int4", 32))])
    experts = holder["layer"].experts
    length = torch.export.Dim("length", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(
            PortableTernaryMoE(experts).eval(), (torch.zeros(1, 5, 40),), dynamic_shapes=({1: length},), strict=False
        )
    edge = to_edge_transform_and_lower(program, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    buffer = edge.to_executorch().buffer
    assert b"mote::" not in buffer
    module = portable_lib._load_for_executorch_from_buffer(buffer)
    for tokens in (1, 6):
        x = torch.randn(1, tokens, 40, generator=torch.Generator().manual_seed(tokens))
        if tokens > 1:
            x[0, 0, 0], x[0, 1] = torch.nan, torch.inf
        found = module.run_method("forward", (x,))[0]
        expected = experts(x)
        atol = 1e-6 * float(expected.nan_to_num().abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=atol, equal_nan=True)
