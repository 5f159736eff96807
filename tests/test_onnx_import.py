"""ONNX models of others: what is rewritten gives the same answers, what is not says why, and no file is trusted."""

import errno
import io
import json
import os
import re
import sys
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mote_export.cli.export import main
from mote_export.model.quantizers import fake_quantize_activations, fake_ternarize, ternarize
from mote_export.onnx_import import (
    NothingToRewriteError,
    OnnxFileError,
    RewriteOptions,
    RewriteResult,
    read_model,
    rewrite_onnx,
)
from mote_export.onnx_import.fit import fit_ternary, ternary_codes
from mote_export.packing import PACKINGS, unpack_gate_up
from mote_export.packing.ternary import NotTernaryError, as_ternary
from mote_export.verify import VerificationError
from mote_runtime.errors import MoteError
from mote_runtime.library import get_library_path

Array = NDArray[Any]
EXACT = 1e-5  # the order of float operations, nothing else
K, N = 48, 32
ROUNDING = """
  a = Abs(x)
  m = ReduceMax <keepdims = 1> (a, last)
  f = Clip(m, floor)
  s = Div(top, f)
  p = Mul(x, s)
  r = Round(p)
  c = Clip(r, bottom, top)
"""
ROUNDED = ROUNDING + "  q = Div(c, s)\n"
CONSTANTS: dict[str, Array] = {
    "last": np.array([-1]),
    "floor": np.array(1e-5, np.float32),
    "top": np.array(127.0, np.float32),
    "bottom": np.array(-128.0, np.float32),
}


def codes(rows: int = K, columns: int = N, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.float32)


def ternary(rows: int = K, columns: int = N, scale: float = 0.037, seed: int = 0) -> Array:
    return codes(rows, columns, seed) * np.float32(scale)


def nearly(share: float = 0.01) -> Array:
    weight = ternary()
    weight.reshape(-1)[: int(share * weight.size)] = 0.02
    return weight


def write(
    path: Path,
    body: str,
    weights: Mapping[str, Array],
    *,
    inputs: str = "float[b, 48] x",
    outputs: str = "float[b, 32] y",
    opset: int = 21,
    external: bool = False,
) -> Path:
    text = (
        f'<ir_version: 10, opset_import: ["" : {opset}, "custom" : 1]>\ngraph ({inputs}) => ({outputs}) {{\n{body}\n}}'
    )
    model = onnx.parser.parse_model(text)
    used = set(re.findall(r"\w+", body))
    for name, array in (CONSTANTS | dict(weights)).items():
        if name not in used:
            continue
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save_model(model, path, save_as_external_data=external, size_threshold=64, location=f"{path.name}.data")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder / "model.onnx"


def rewrite(path: Path, rtol: float = EXACT, **options: Any) -> RewriteResult:
    return rewrite_onnx(path, path.parent.parent / "out", RewriteOptions(**options), rtol=rtol)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def run(path: Path, feeds: Mapping[str, Array]) -> Array:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, dict(feeds))[0]
    return result


# Products


SPELLINGS = {
    "quotient": ROUNDED + "y = MatMul(q, w)",
    "step": ROUNDING + "d = Div(f, top)\n q = Mul(c, d)\n y = MatMul(q, w)",
    "reciprocal": """
        a = Abs(x)
        m = ReduceMax <keepdims = 1> (a, last)
        f = Max(floor, m)
        i = Reciprocal(f)
        s = Mul(i, top)
        p = Mul(s, x)
        k = Clip(p, bottom, top)
        r = Round(k)
        q = Div(r, s)
        y = MatMul(q, w)""",
    "straight-through": ROUNDED + "e = Sub(q, x)\n t = Add(x, e)\n y = MatMul(t, w)",
    "integers": ROUNDING
    + "j = Cast <to = 3> (c)\n h = Cast <to = 1> (j)\n z = MatMul(h, w)\n g = Mul(unit, s)\n y = Div(z, g)",
    "factor behind": ROUNDED + "z = MatMul(q, w)\n y = Mul(z, unit)",
    "transposed": ROUNDED + "u = Transpose <perm = [1, 0]> (v)\n y = MatMul(q, u)",
    "gemm": ROUNDED + "y = Gemm <alpha = 0.5, transB = 1> (q, v)",
    "bias": ROUNDED + "y = Gemm(q, w, bias)",
    "dequantized": ROUNDED + "u = DequantizeLinear(t8, unit0)\n y = MatMul(q, u)",
    "constant": ROUNDED + "u = Identity(w)\n y = MatMul(q, u)",
    "gathered": ROUNDED + "n = Gather <axis = 0> (q, rows)\n z = MatMul(n, w)\n y = Reshape(z, minus)",
}


@pytest.mark.parametrize("packing", ["2bit", "1.6bit"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_rounded_activations_are_found_in_their_spellings(source: Path, spelling: str, packing: str) -> None:
    weights = {
        "w": ternary(), "v": np.ascontiguousarray(ternary().T), "unit": np.array([20.0], np.float32),
        "unit0": np.array(0.05, np.float32), "t8": codes().astype(np.int8), "bias": np.linspace(-1, 1, N, dtype=np.float32),
        "rows": np.array([1, 0, 1]), "minus": np.array([-1, N]),
    }  # fmt: skip
    result = rewrite(write(source, SPELLINGS[spelling], weights), packing=packing)
    assert [item.op for item in result.rewritten] == ["TernaryMatMul"]
    assert result.rewritten[0].shape == (N, K)
    assert result.rewritten[0].activations == ("repeated" if spelling == "gathered" else "absorbed")
    assert not result.left
    kept = {"bias": ["TernaryMatMul", "Add"]}.get(spelling, ["TernaryMatMul"])
    assert spelling == "gathered" or operators(result.file) == kept
    assert result.comparison is not None
    assert result.comparison.greatest < EXACT


def test_packed_weights_are_those_of_the_graph(source: Path) -> None:
    rewritten = rewrite(write(source, ROUNDED + "y = MatMul(q, w)", {"w": ternary()}), packing="1.6bit").file
    model = onnx.load(rewritten)
    node = model.graph.node[0]
    arrays = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    np.testing.assert_array_equal(PACKINGS["1.6bit"].unpack(arrays[node.input[1]], N, K), codes().T)
    np.testing.assert_array_equal(arrays[node.input[2]], np.array([0.037], np.float32))


def test_one_weight_of_two_products_is_packed_once(source: Path) -> None:
    body = ROUNDED + "first = MatMul(q, w)\n second = MatMul(q, w)\n y = Add(first, second)"
    result = rewrite(write(source, body, {"w": ternary()}))
    assert operators(result.file) == ["TernaryMatMul", "TernaryMatMul", "Add"]
    packed = [item for item in onnx.load(result.file).graph.initializer if item.data_type == TensorProto.UINT8]
    assert len(packed) == 1


def test_names_and_other_operators_stay(source: Path) -> None:
    body = ROUNDED + "z = MatMul(q, w)\n k = custom.Twice(z)\n y = Relu(k)"
    path = write(source, body, {"w": ternary()})
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = f"/layer/{node.op_type}"
    model.metadata_props.add(key="author", value="somebody")
    onnx.save(model, path)
    result = rewrite_onnx(path, path.parent.parent / "out", verify=False)  # nobody has an operator custom::Twice
    written = onnx.load(result.file)
    names = ["/layer/MatMul", "/layer/Twice", "/layer/Relu"]
    assert [node.name for node in written.graph.node] == names
    assert [node.domain for node in written.graph.node] == ["mote", "custom", ""]
    assert "somebody" in [entry.value for entry in written.metadata_props]
    assert [item.name for item in result.rewritten] == ["/layer/MatMul"]
    onnx.checker.check_model(str(result.file))


def test_a_product_inside_of_a_subgraph_is_rewritten(source: Path) -> None:
    body = (
        ROUNDED
        + """
        y = If (is_ternary) <
          then_branch = yes () => (float[b, 32] product) { product = MatMul(q, w) },
          else_branch = no () => (float[b, 32] other) { other = Gemm(x, dense) }
        >"""
    )
    dense = np.random.default_rng(1).standard_normal((K, N)).astype(np.float32)
    path = write(source, body, {"w": ternary(), "dense": dense}, inputs="float[b, 48] x, bool is_ternary")
    result = rewrite(path)
    assert [item.op for item in result.rewritten] == ["TernaryMatMul"]
    assert [item.op for item in result.left] == ["Gemm"]
    feeds = {"x": np.random.default_rng(0).standard_normal((3, K)).astype(np.float32)}
    for flag in (True, False):
        expected = run(path, feeds | {"is_ternary": np.array(flag)})
        np.testing.assert_allclose(
            run(result.file, feeds | {"is_ternary": np.array(flag)}), expected, rtol=1e-4, atol=1e-5
        )


def test_a_graph_in_half_precision_is_rewritten_with_casts(source: Path) -> None:
    body = ROUNDED.replace("(x)", "(wide)").replace("(x,", "(wide,")
    body = f"wide = Cast <to = 1> (x)\n{body}\n h = Cast <to = 10> (q)\n y = MatMul(h, w)"
    path = write(
        source, body, {"w": ternary().astype(np.float16)}, inputs="float16[b, 48] x", outputs="float16[b, 32] y"
    )
    result = rewrite(path, rtol=2e-3)
    assert operators(result.file) == ["Cast", "TernaryMatMul", "Cast"]
    assert result.rewritten[0].bytes_before == 2 * K * N


# What is left


LEFT: dict[str, tuple[str, dict[str, Array], str]] = {
    "not ternary": (
        ROUNDED + "y = MatMul(q, w)",
        {"w": np.random.default_rng(1).standard_normal((K, N)).astype(np.float32)},
        r"not ternary: 100% of its weights .* would change them by 4\d%",
    ),
    "nearly ternary": (ROUNDED + "y = MatMul(q, w)", {"w": nearly()}, r"15 of its 1536 weights .* largest deviation .*--ternarize"),
    "two scales": (
        ROUNDED + "y = MatMul(q, w)",
        {"w": np.concatenate([ternary(K, 16, 0.037), ternary(K, 16, 0.04)], axis=1)},
        "--ternarize",
    ),
    "not rounded": ("y = MatMul(x, w)", {"w": ternary()}, "--quantize-activations"),
    "other floor": (
        ROUNDED.replace("floor", "high") + "y = MatMul(q, w)", {"w": ternary(), "high": np.array(1e-2, np.float32)}, "not rounded"
    ),
    "other step": (ROUNDED.replace("Div(c, s)", "Div(c, a)") + "y = MatMul(q, w)", {"w": ternary()}, "not rounded to 8 bits"),
    "other axis": (
        ROUNDED.replace("last", "first") + "y = MatMul(q, w)", {"w": ternary(), "first": np.array([0])}, "not rounded"
    ),
    "dynamic": ("u = Transpose(x)\n z = MatMul(u, x)\n y = MatMul(x, z)", {}, "its weight is not constant"),
    "batched": (
        ROUNDED + "z = MatMul(q, w)\n y = Squeeze(z, zero)", {"w": ternary()[None], "zero": np.array([0])}, "3 dimensions"
    ),
    "negative alpha": (ROUNDED + "y = Gemm <alpha = -1.0> (q, w)", {"w": ternary()}, "its alpha is -1"),
    "damaged": (
        ROUNDED + "y = MatMul(q, w)", {"w": np.where(codes() > 0, np.nan, ternary()).astype(np.float32)}, "NaN or infinity"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_says_why_and_nothing_is_written(source: Path, case: str) -> None:
    body, weights, reason = LEFT[case]
    with pytest.raises(NothingToRewriteError, match="has nothing to rewrite") as refused:
        rewrite(write(source, body, weights, outputs="float y" if case == "dynamic" else "float[b, 32] y"))
    assert all(re.search(reason, item.reason) for item in refused.value.left), refused.value.left
    assert refused.value.left
    assert [path.name for path in source.parent.parent.iterdir()] == ["source"]


def test_nearly_ternary_weights_are_rounded_if_asked_for(source: Path) -> None:
    path = write(source, ROUNDED + "y = MatMul(q, w)", {"w": nearly()})
    with pytest.raises(VerificationError, match="--rtol"):
        rewrite(path, ternarize=True)
    result = rewrite(path, rtol=0.1, ternarize=True)
    rounded = np.where(np.abs(nearly()) > 0.02, nearly(), 0)
    assert 0.01 < result.rewritten[0].error <= np.linalg.norm(nearly() - rounded) / np.linalg.norm(nearly())


def test_activations_are_rounded_if_asked_for(source: Path) -> None:
    result = rewrite(write(source, "y = MatMul(x, w)", {"w": ternary()}), rtol=0.05, quantize_activations=True)
    assert result.rewritten[0].activations == "new"
    assert result.comparison is not None
    assert 1e-4 < result.comparison.greatest < 0.05


def test_what_is_written_has_nothing_left_to_rewrite(source: Path) -> None:
    written = rewrite(write(source, ROUNDED + "y = MatMul(q, w)", {"w": ternary()})).file
    with pytest.raises(NothingToRewriteError, match="nothing left to rewrite: it has 1 of mote's operators already"):
        rewrite_onnx(written, written.parent.parent / "again")


def test_a_failed_verification_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mote_export.onnx_import.weights import TernaryMatrix

    path = write(source, ROUNDED + "y = MatMul(q, w)", {"w": ternary()})
    honest = TernaryMatrix.__init__

    def wrong(self: TernaryMatrix, **fields: Any) -> None:
        honest(self, **(fields | {"scale": 1.1 * fields["scale"]}))

    monkeypatch.setattr(TernaryMatrix, "__init__", wrong)
    with pytest.raises(VerificationError, match=r"y differs by 0\.1 of its standard deviation"):
        rewrite(path)
    assert [item.name for item in source.parent.parent.iterdir()] == ["source"]


# Experts


def ternary_linear(outputs: int, inputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    values, scale = ternarize(torch.randn(outputs, inputs))
    linear.weight.data = values * scale
    return linear


class FeedForward(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (ternary_linear(intermediate, hidden) for _ in range(2))
        self.down_proj = ternary_linear(hidden, intermediate)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(fake_quantize_activations(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Mixture(nn.Module):
    """MoteLayer's arithmetic as those write it whose exporter cannot follow its loop over the tokens of each expert."""

    def __init__(self, form: str, top_k: int = 1, normalize: bool = False, has_shared: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.form, self.top_k, self.normalize = form, top_k, normalize
        self.router = nn.Linear(32, 3, bias=False)
        self.experts = nn.ModuleList(FeedForward(32, 48) for _ in range(3))
        self.shared_expert = nn.Linear(32, 32, bias=False) if has_shared else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.reshape(-1, 32)
        logits = self.router(x)
        probability = logits.softmax(dim=-1)
        expert = logits.topk(self.top_k, dim=-1).indices
        weight = probability.gather(-1, expert)
        if self.normalize:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        y = self.combine(fake_quantize_activations(x), probability, expert, weight).view_as(hidden_states)
        return y if self.shared_expert is None else self.shared_expert(hidden_states) + y

    def combine(self, x: Tensor, probability: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        if self.form == "mask":
            for index, ffn in enumerate(self.experts):
                y = y + ffn(x) * ((expert == index) * weight).sum(dim=-1, keepdim=True)
            return y
        if self.form == "index_add":
            for index, ffn in enumerate(self.experts):
                token, rank = torch.where(expert == index)
                y = y.index_add(0, token, ffn(x[token]) * weight[token, rank, None])
            return y
        gates = torch.zeros_like(probability).scatter(-1, expert, weight)
        if self.form == "squared":  # no mixture that the operator computes
            gates = gates * gates
        return (torch.stack([ffn(x) for ffn in self.experts], dim=1) * gates[..., None]).sum(dim=1)


def export(module: nn.Module, path: Path, *, width: int = 32, dynamo: bool = True) -> Path:
    """By torch's exporter, or by the one before it, of which most of the files that exist are."""
    example = (torch.randn(2, 5, width),)
    if dynamo:
        shapes = ({1: "tokens"},)
        program = torch.onnx.export(
            module.eval(), example, dynamo=True, opset_version=21, dynamic_shapes=shapes, verbose=False
        )
        assert program is not None
        program.save(path, external_data=True)
    else:
        axes = {"x": {1: "tokens"}}
        torch.onnx.export(
            module.eval(), example, path, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=axes
        )
    return path


@pytest.mark.parametrize(
    ("form", "top_k", "normalize", "dynamo"),
    [
        ("mask", 1, False, True),
        ("index_add", 2, True, False),
        ("stacked", 2, False, False),
        pytest.param("index_add", 1, False, True, marks=pytest.mark.long),
    ],
)
def test_experts_that_a_graph_computes_apart_become_one_operator(
    source: Path, form: str, top_k: int, normalize: bool, dynamo: bool
) -> None:
    module = Mixture(form, top_k, normalize)
    path = export(module, source, dynamo=dynamo)
    result = rewrite(path)
    assert [(item.op, item.name.strip("/"), item.shape) for item in result.rewritten] == [
        ("TernaryMoE", "experts/TernaryMoE", (3, 48, 32))
    ]
    assert set(operators(result.file)) - {"Cast", "Constant", "Shape"} == {"Reshape", "TernaryMoE", "MatMul", "Add"}
    assert result.bytes_after < result.bytes_before / 3
    model = onnx.load(result.file)
    node = next(node for node in model.graph.node if node.op_type == "TernaryMoE")
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    assert (attributes["num_experts"], attributes["top_k"], attributes["normalize_topk"]) == (3, top_k, normalize)
    arrays = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for index, expert in enumerate(module.experts):
        found = unpack_gate_up(arrays[node.input[2]][index], 48, 32)
        for name, values, scale in zip(("gate_proj", "up_proj"), found, arrays[node.input[3]][index], strict=True):
            np.testing.assert_array_equal(values * scale, expert.get_parameter(f"{name}.weight").detach().numpy())
    x = torch.randn(2, 40, 32)
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(run(result.file, {model.graph.input[0].name: x.numpy()}), expected, atol=1e-4)
    with pytest.raises(NothingToRewriteError, match="it has 1 of mote's operators already"):
        rewrite_onnx(result.file, source.parent / "again")


def test_experts_in_a_mixture_of_another_kind_stay_apart_and_say_why(source: Path) -> None:
    result = rewrite(export(Mixture("squared", 2, has_shared=False), source, dynamo=False))
    assert [item.op for item in result.rewritten] == ["TernaryMatMul"] * 9
    assert [item.op for item in result.left] == ["MatMul", "TernaryMatMul"]
    assert "experts stay apart: the shares of its experts are not those of softmax and top-k" in result.left[1].reason


class Router(nn.Module):
    """Logits with a bias, as a Gemm or as a MatMul and an Add."""

    def __init__(self, op: str, bias: Tensor) -> None:
        super().__init__()
        self.op, self.weight, self.bias = op, nn.Parameter(torch.randn(3, 32)), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) if self.op == "Gemm" else x @ self.weight.T + self.bias


def with_router(source: Path, op: str, bias: list[float]) -> Path:
    module = Mixture("stacked", 2, has_shared=False)
    module.router = Router(op, torch.tensor(bias))
    export(module, source, dynamo=False)
    assert [node.op_type for node in onnx.load(source).graph.node if node.op_type in (op, "Gemm")].count(op) >= 1
    return source


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_a_router_whose_bias_is_zero_loses_it(source: Path, op: str) -> None:
    result = rewrite(with_router(source, op, [0.0, -0.0, 0.0]))
    assert [item.op for item in result.rewritten] == ["TernaryMoE"]
    assert set(operators(result.file)) - {"Cast"} == {"Constant", "Shape", "Reshape", "TernaryMoE"}


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("bias", [[0.5, -0.5, 0.0], [1e-5, 0.0, 0.0], [0.0, 0.0, float("nan")]], ids=str)
def test_a_router_with_a_bias_stays_and_the_reason_names_it(source: Path, op: str, bias: list[float]) -> None:
    """Also a bias that the shares of random tokens do not show."""
    result = rewrite_onnx(with_router(source, op, bias), source.parent.parent / "out", verify=False)
    assert [item.op for item in result.rewritten] == ["TernaryMatMul"] * 9
    reasons = [item.reason for item in result.left if "stay apart" in item.reason]
    assert len(reasons) == 1
    assert re.fullmatch(
        rf"its experts stay apart: their router .*{op}.* has a bias, router\.bias, that is not zero, and the operator's has none",
        reasons[0],
    )


@pytest.mark.parametrize("alpha", [0.5, -2.0])
def test_the_factor_of_a_router_is_part_of_its_weights(source: Path, alpha: float) -> None:
    path = with_router(source, "Gemm", [0.0, 0.0, 0.0])
    model = onnx.load(path)
    router = next(node for node in model.graph.node if node.op_type == "Gemm")
    next(item for item in router.attribute if item.name == "alpha").f = alpha
    onnx.save(model, path)
    result = rewrite(path)
    assert [item.op for item in result.rewritten] == ["TernaryMoE"]
    written = onnx.load(result.file).graph
    weights = {item.name: numpy_helper.to_array(item) for item in (*model.graph.initializer, *written.initializer)}
    node = next(node for node in written.node if node.op_type == "TernaryMoE")
    np.testing.assert_array_equal(weights[node.input[1]], weights["router.weight"] * np.float32(alpha))


class Online(nn.Module):
    """A layer of quantization-aware training: the graph makes its weights ternary, and keeps the straight-through estimators."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N, K))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(fake_quantize_activations(x), fake_ternarize(self.weight))


def test_weights_that_the_graph_makes_ternary_are_computed(source: Path) -> None:
    module = Online()
    result = rewrite(
        export(module, source, width=K), rtol=1e-3
    )  # weights of torch's mean |W| and numpy's differ by an ulp
    assert operators(result.file) == ["TernaryMatMul"]
    assert result.rewritten[0].error == 0.0
    assert result.left == ()


# Files


def tensors(model: onnx.ModelProto) -> list[TensorProto]:
    return [item for item in model.graph.initializer if item.data_location == TensorProto.EXTERNAL]


def entry(key: str, value: str) -> Callable[[onnx.ModelProto, Path], None]:
    """A damage: one entry of the external data of every tensor."""

    def damage(model: onnx.ModelProto, folder: Path) -> None:
        for tensor in tensors(model):
            kept = [item for item in tensor.external_data if item.key != key]
            del tensor.external_data[:]
            tensor.external_data.extend([*kept, onnx.StringStringEntryProto(key=key, value=value)])

    return damage


def outside(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "model.onnx.data").rename(folder.parent / "stolen")
    (folder / "model.onnx.data").symlink_to(folder.parent / "stolen")


def replaced(make: Callable[[Path], None]) -> Callable[[onnx.ModelProto, Path], None]:
    def damage(model: onnx.ModelProto, folder: Path) -> None:
        (folder / "model.onnx.data").unlink()
        make(folder / "model.onnx.data")

    return damage


def of_shape(*shape: int) -> Callable[[onnx.ModelProto, Path], None]:
    def damage(model: onnx.ModelProto, folder: Path) -> None:
        for tensor in tensors(model):
            tensor.dims[:] = shape

    return damage


def of_type(number: int) -> Callable[[onnx.ModelProto, Path], None]:
    def damage(model: onnx.ModelProto, folder: Path) -> None:
        for tensor in tensors(model):
            tensor.data_type = number

    return damage


def inline_bytes(model: onnx.ModelProto, folder: Path) -> None:
    del model.graph.initializer[:]
    model.graph.initializer.append(TensorProto(name="w", dims=[K, N], data_type=1, raw_data=b"1234"))


def no_graph(model: onnx.ModelProto, folder: Path) -> None:
    model.ClearField("graph")


def takes(node: int, place: int, name: str) -> Callable[[onnx.ModelProto, Path], None]:
    """A damage: an input of a node."""

    def damage(model: onnx.ModelProto, folder: Path) -> None:
        model.graph.node[node].input[place] = name

    return damage


def without_input(model: onnx.ModelProto, folder: Path) -> None:
    del model.graph.node[-1].input[1:]


def made_twice(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node.append(model.graph.node[-1])


def of_same_name(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((K, N), np.float32), "w"))


def holds(tensor: TensorProto) -> Callable[[onnx.ModelProto, Path], None]:
    """A damage: w is another tensor, in the .onnx file."""

    def damage(model: onnx.ModelProto, folder: Path) -> None:
        kept = [item for item in model.graph.initializer if item.name != "w"]
        del model.graph.initializer[:]
        model.graph.initializer.extend([*kept, tensor])

    return damage


def sparse(model: onnx.ModelProto, folder: Path) -> None:
    """onnx-ir leaves these out without a word, and what takes them without a source."""
    values, indices = (
        numpy_helper.from_array(np.ones(2, np.float32), "rest"),
        numpy_helper.from_array(np.array([3, 9]), "i"),
    )
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=indices, dims=[N]))
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(helper.make_node("Add", ["z", "rest"], ["y"]))


def sparse_outside(model: onnx.ModelProto, folder: Path) -> None:
    values = TensorProto(name="rest", dims=[2], data_type=1, data_location=TensorProto.EXTERNAL)
    values.external_data.extend([onnx.StringStringEntryProto(key="location", value="../stolen")])
    constant = onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(np.array([3, 9]), "i"), dims=[N])
    model.graph.node.insert(0, helper.make_node("Constant", [], ["rest"], sparse_value=constant))


def huge(model: onnx.ModelProto, folder: Path) -> None:
    """The file is that long only by name: it has one byte."""
    with (folder / "model.onnx.data").open("r+b") as file:
        file.truncate(3 << 30)
    for tensor in tensors(model):
        tensor.dims[:] = [1 << 15, 1 << 15]
        place = {item.key: item for item in tensor.external_data}
        place["offset"].value, place["length"].value = str(1 << 20), str(4 << 30)


DAMAGES: dict[str, tuple[Callable[[onnx.ModelProto, Path], None], str]] = {
    "absolute": (entry("location", "/etc/passwd"), "expected a path inside"),
    "upwards": (entry("location", "sub/../../stolen"), "expected a path inside"),
    "windows": (entry("location", "C:\\stolen"), "expected a path inside"),
    "backslash": (entry("location", "..\\stolen"), "expected a path inside"),
    "empty": (entry("location", ""), "expected a path inside"),
    "link": (outside, "link out of the model's folder"),
    "absent": (replaced(lambda path: None), "does not exist"),
    "folder": (replaced(lambda path: path.mkdir()), "is not a regular file"),
    "pipe": (replaced(lambda path: os.mkfifo(path)), "is not a regular file"),
    "cut off": (replaced(lambda path: path.write_bytes(bytes(4 * K * N - 1)) and None), "it is cut off"),
    "offset": (entry("offset", str(1 << 40)), "it is cut off"),
    "negative": (entry("offset", "-64"), "expected a number of bytes"),
    "huge": (entry("offset", "9" * 30), "expected a number of bytes"),
    "length": (entry("length", "8"), f"has 8 bytes, expected {4 * K * N}"),
    "unknown key": (entry("url", "somewhere"), "ONNX does not define"),
    "shape": (of_shape(-1, N), "expected at most 16 sizes of at least 0"),
    "overflow": (of_shape(1 << 40, 1 << 40), "expected 4835703278458516698824704"),
    "no type": (of_type(99), "which ONNX does not have"),
    "string": (of_type(TensorProto.STRING), "cannot be stored so"),
    "inline": (inline_bytes, "has 4 bytes"),
    "no graph": (no_graph, "is not an ONNX model: it has no graph"),
    "dangling": (takes(0, 0, "nobody"), "input 'nobody' of node: name:  OpType: Abs is not output of any previous nodes"),
    "cycle": (takes(0, 0, "y"), "must be topologically sorted, however input 'y'"),
    "circle of one": (takes(-1, 0, "y"), "must be topologically sorted, however input 'y'"),
    "no input": (without_input, "has input size 1 not in range"),
    "empty input": (takes(-1, 1, ""), "has an empty string"),
    "made twice": (made_twice, "'y' has been used as output names multiple times"),
    "same name": (of_same_name, "w initializer name is not unique"),
    "few numbers": (holds(TensorProto(name="w", dims=[K, N], data_type=1, float_data=[1])), "has 1 numbers, expected 1536"),
    "many numbers": (
        holds(TensorProto(name="w", dims=[K, N], data_type=1, float_data=[1] * 1537)), "has 1537 numbers, expected 1536"
    ),
    "few half bytes": (
        holds(TensorProto(name="w", dims=[K, N], data_type=TensorProto.INT4, int32_data=[1] * 767)),
        "has 767 numbers, expected 768 for INT4",
    ),
    "other numbers": (
        holds(TensorProto(name="w", dims=[K, N], data_type=1, int32_data=[1] * 1536)), "should be stored in field 'float_data'"
    ),
    "no numbers": (
        holds(TensorProto(name="w", dims=[1 << 31, 1 << 31], data_type=1)), "has 0 numbers, expected 4611686018427387904"
    ),
    "sparse": (sparse, "rest is a sparse initializer, which is not read"),
    "sparse outside": (sparse_outside, "rest: external data is in '../stolen', expected a path inside"),
    "past 4 GiB": (huge, r"ends at byte 4296015872 of model.onnx.data, which has 3221225472"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_are_checked_before_they_are_used(source: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    write(source, ROUNDED + "y = MatMul(q, w)", {"w": ternary()}, external=True)
    model = onnx.load(source, load_external_data=False)
    change(model, source.parent)
    source.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxFileError, match=message) as refused:
        rewrite(source)
    assert str(refused.value).isprintable()
    assert not (source.parent.parent / "out").exists()


@pytest.mark.parametrize("text", [b"MatMul", b"floor", b"model.onnx.data", b"graph", b"location"])
def test_text_that_is_not_utf8_is_refused(source: Path, text: bytes) -> None:
    model = helper.make_graph([], "graph", [], [])
    write(source, ROUNDED + "y = MatMul(q, w)", {"w": ternary()}, external=True)
    loaded = onnx.load(source, load_external_data=False)
    loaded.graph.name = model.name
    content = loaded.SerializeToString()
    assert text in content
    source.write_bytes(content.replace(text, text[:-1] + b"\xff"))
    with pytest.raises(OnnxFileError, match="is not an ONNX model: a name in it is not UTF-8"):
        rewrite(source)


def test_a_file_past_2_gib_is_refused_before_it_is_read(source: Path) -> None:
    with source.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(
        OnnxFileError, match=r"has 2147483648 bytes, .* at most 2147483647: keep the weights in external data"
    ):
        rewrite(source)


def test_weights_past_4_gib_of_their_file_are_read_where_they_are(source: Path) -> None:
    """The file has a hole in front of them."""
    write(source, ROUNDED + "y = MatMul(q, w)", {"w": ternary()}, external=True)
    model = onnx.load(source, load_external_data=False)
    data = source.parent / "model.onnx.data"
    content = data.read_bytes()[: 4 * K * N]
    data.write_bytes(b"")
    with data.open("r+b") as file:
        file.seek(5 << 30)
        file.write(content)
    for tensor in tensors(model):
        next(item for item in tensor.external_data if item.key == "offset").value = str(5 << 30)
    source.write_bytes(model.SerializeToString())
    result = rewrite(source)
    assert result.bytes_before > 5 << 30
    assert result.bytes_after < 1 << 16


@pytest.mark.parametrize(("rows", "columns"), [(0, N), (K, 0), (0, 0)])
@pytest.mark.parametrize("external", [False, True])
def test_a_weight_without_elements_stays(source: Path, rows: int, columns: int, external: bool) -> None:
    path = write(
        source,
        ROUNDED + "y = MatMul(q, w)\nk = Identity(rest)",
        {"w": np.zeros((rows, columns), np.float32), "rest": np.ones(64, np.float32)},
        inputs=f"float[b, {rows}] x",
        outputs=f"float[b, {columns}] y, float[64] k",
        external=external,
    )
    if external:
        model = onnx.load(path, load_external_data=False)
        weight = next(item for item in model.graph.initializer if item.name == "w")
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.append(onnx.StringStringEntryProto(key="location", value="model.onnx.data"))
        path.write_bytes(model.SerializeToString())
    with pytest.raises(NothingToRewriteError, match=f"its weight is {columns} x {rows}, 1 to 131072"):
        rewrite(path)
    assert not (source.parent.parent / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"not a model", bytes(range(64, 0, -1))], ids=["empty", "zeros", "text", "bytes"]
)
def test_what_is_no_model_is_refused(source: Path, content: bytes) -> None:
    source.write_bytes(content)
    with pytest.raises(OnnxFileError, match="is not an ONNX model"):
        read_model(source)


def test_external_data_is_read_and_written_anew(source: Path) -> None:
    """Also what is too small for the new data file, which another file of the same name would stand in for."""
    rest = np.random.default_rng(5).standard_normal((N, 64)).astype(np.float32)
    small = np.linspace(-1, 1, 64, dtype=np.float32)
    body = ROUNDED + "z = MatMul(q, w)\n k = MatMul(z, rest)\n y = Add(k, small)"
    weights = {"w": ternary(), "rest": rest, "small": small}
    path = write(source, body, weights, outputs="float[b, 64] y", external=True)
    result = rewrite(path)
    assert {item.name for item in result.file.parent.iterdir()} == {"model.onnx", "model.onnx.data"}
    written = onnx.load(result.file, load_external_data=False)
    external = {item.name: {part.key: part.value for part in item.external_data} for item in tensors(written)}
    assert external.keys() == {"rest"}
    assert all(int(place["offset"]) % 64 == 0 for place in external.values())
    arrays = {item.name: numpy_helper.to_array(item) for item in onnx.load(result.file).graph.initializer}
    np.testing.assert_array_equal(arrays["rest"], rest)
    np.testing.assert_array_equal(arrays["small"], small)
    assert result.bytes_after == sum(item.stat().st_size for item in result.file.parent.iterdir())


def test_an_initializer_that_callers_may_replace_is_no_constant(source: Path) -> None:
    path = write(source, ROUNDED + "y = MatMul(q, w)", {"w": ternary()}, inputs="float[b, 48] x, float[48, 32] w")
    with pytest.raises(NothingToRewriteError, match="an input that callers may replace"):
        rewrite(path)


def test_a_constant_that_would_grow_without_bounds_is_not_computed(source: Path) -> None:
    ones = np.ones((1 << 14, 1), np.float32)
    body = "u = Mul(ones, turned)\n y = MatMul(x, u)"
    path = write(
        source,
        body,
        {"ones": ones, "turned": ones.T.copy()},
        inputs=f"float[b, {1 << 14}] x",
        outputs=f"float[b, {1 << 14}] y",
    )
    with pytest.raises(NothingToRewriteError, match="would make 268435456 numbers of 16384"):
        rewrite(path)


CONCATS = "\n".join(f"c{index + 1} = Concat <axis = 0> (c{index}, c{index})" for index in range(40))
BOMBS: dict[str, tuple[str, dict[str, Array], str]] = {
    "concat": (
        CONCATS + "\n u = Slice(c40, zeros, ends)\n y = MatMul(q, u)",
        {"c0": ternary(), "zeros": np.array([0]), "ends": np.array([K])},
        "Concat .* would make 25165824 numbers of 12582912",
    ),
    "gather": (
        "g = Gather <axis = 1> (w, many)\n u = Slice(g, zeros, ends, axes)\n y = MatMul(q, u)",
        {"w": ternary(), "many": np.zeros(1 << 19, np.int64), "zeros": np.array([0]), "ends": np.array([N]), "axes": np.array([1])},
        "Gather .* would make 25165824 numbers of 524288",
    ),
    "text": ("t = Cast <to = 8> (w)\n u = Cast <to = 1> (t)\n y = MatMul(q, u)", {"w": ternary()}, "its weight is not constant"),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_small_constants_that_would_take_much_memory_are_not_computed(source: Path, case: str) -> None:
    body, weights, reason = BOMBS[case]
    with pytest.raises(NothingToRewriteError, match=reason):
        rewrite(write(source, ROUNDED + body, weights))


@pytest.mark.parametrize("alpha", [float("inf"), 1e-45])
def test_a_factor_that_is_no_scale_stays(source: Path, alpha: float) -> None:
    path = write(source, ROUNDED + "y = Gemm <alpha = 2.0> (q, w)", {"w": ternary()})
    model = onnx.load(path)
    model.graph.node[-1].attribute[0].f = alpha
    onnx.save(model, path)
    with pytest.raises(NothingToRewriteError, match="for which float32 has no scale"):
        rewrite(path)


def test_names_are_printed_as_they_are_but_for_what_a_terminal_would_obey(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich would take [/b] for the end of a style that nothing began, which is an error."""
    path = write(source, ROUNDED + "y = MatMul(q, w)\n z = MatMul(x, w)", {"w": ternary()}, outputs="float y, float z")
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = f"[/b]\n\x1b[31m{node.output[0]}"
    onnx.save(model, path)
    monkeypatch.setenv("COLUMNS", "400")
    assert main([str(path), "-o", str(tmp_path / "[out]")]) == 0
    printed = capsys.readouterr().out
    assert "[/b]??[31my" in printed
    assert "MatMul [/b]??[31mz" in printed
    assert "\x1b" not in printed
    assert f"{tmp_path}/[out]/model.onnx" in printed


# Memory


FORMS: dict[str, Callable[[Array], Array]] = {
    "ternary": lambda weight: weight,
    "float16": lambda weight: weight.astype(np.float16),
    "noise": lambda weight: (weight * (1 + 1e-7 * np.arange(weight.size).reshape(weight.shape) % 3e-7)).astype(
        np.float32
    ),
    "nearly": lambda weight: np.where(np.arange(weight.size).reshape(weight.shape) % 97, weight, 0.02).astype(
        np.float32
    ),
    "dense": lambda weight: np.random.default_rng(3).standard_normal(weight.shape).astype(np.float32),
    "zeros": np.zeros_like,
}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("form", FORMS)
def test_a_scale_found_piece_by_piece_is_that_of_the_whole(
    form: str, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mote_export.onnx_import.fit.PIECE", 1000)
    weight = np.asarray(FORMS[form](ternary(100, 77)), order=order)
    fit = fit_ternary(weight)
    expected = as_ternary(torch.from_numpy(weight.astype(np.float32)), force=True)
    assert fit.scale == pytest.approx(float(expected.scale), rel=1e-6)
    assert fit.error == pytest.approx(expected.error, rel=1e-6)
    assert (fit.count == 0) == (expected.error == 0.0)
    if fit.count:
        with pytest.raises(NotTernaryError) as refused:
            as_ternary(torch.from_numpy(weight.astype(np.float32)))
        assert fit.count == refused.value.count
        assert fit.deviation == pytest.approx(refused.value.deviation, rel=1e-5)
    pieces = list(ternary_codes(weight, fit.scale))
    assert [len(piece) for piece in pieces] == [16] * 6 + [4]
    np.testing.assert_array_equal(np.concatenate(pieces), expected.codes)


def test_lines_packed_piece_by_piece_are_those_of_the_whole(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mote_export.onnx_import.fit.PIECE", 16 * K)
    path = write(source, ROUNDED + "y = MatMul(q, w)", {"w": ternary(K, 90)}, outputs="float[b, 90] y", external=True)
    written = onnx.load(rewrite(path, packing="1.6bit").file)
    arrays = {item.name: numpy_helper.to_array(item) for item in written.graph.initializer}
    lines = arrays[written.graph.node[0].input[1]]
    np.testing.assert_array_equal(lines, PACKINGS["1.6bit"].pack(codes(K, 90).T.astype(np.int8)))


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_large_matrix_is_never_in_memory(source: Path, is_transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 MiB of external data, while anonymous memory of numpy and Python is counted."""
    monkeypatch.setattr("mote_export.onnx_import.fit.PIECE", 1 << 16)
    weight = ternary(1 << 10, 1 << 12)
    body = ROUNDED + ("u = Transpose <perm = [1, 0]> (w)\n y = MatMul(q, u)" if is_transposed else "y = MatMul(q, w)")
    weights = {"w": np.ascontiguousarray(weight.T) if is_transposed else weight}
    path = write(source, body, weights, inputs="float[b, 1024] x", outputs="float[b, 4096] y", external=True)
    tracemalloc.start()
    try:
        result = rewrite_onnx(path, source.parent.parent / "out", verify=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [item.shape for item in result.rewritten] == [(1 << 12, 1 << 10)]
    assert peak < weight.nbytes / 2


# The command


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("external", [False, True])
def test_bars_are_shown_on_a_terminal_and_nowhere_else(
    source: Path, tmp_path: Path, external: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = np.random.default_rng(1).standard_normal((N, 64)).astype(np.float32)
    body = ROUNDED + "z = MatMul(q, w)\n y = MatMul(z, dense)"
    path = write(source, body, {"w": ternary(), "dense": dense}, outputs="float[b, 64] y", external=external)
    for arguments, stream in (([], Terminal()), (["--json"], Terminal()), ([], io.StringIO())):
        monkeypatch.setattr(sys, "stderr", stream)
        assert main([str(path), "-o", str(tmp_path / f"out{id(stream)}"), *arguments]) == 0
        printed = stream.getvalue()
        if arguments or not stream.isatty():
            assert printed == ""
            continue
        assert re.search(r"mote-export: weights: 100%.* 2/2 ", printed)
        assert re.search(r"mote-export: writing: 100%.* 8\.19k/8\.19k", printed)


def test_a_bar_ends_with_a_disk_that_is_full(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(source, ROUNDED + "y = MatMul(q, w)", {"w": ternary()})
    monkeypatch.setattr(sys, "stderr", Terminal())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.onnx.data")

    monkeypatch.setattr("mote_export.onnx_import.rewrite.save_model", full)
    threads = threading.active_count()
    assert main([str(path), "-o", str(tmp_path / "out")]) == 1
    assert threading.active_count() == threads
    assert not (tmp_path / "out").exists()


def test_the_command_reports_what_it_did(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = np.random.default_rng(1).standard_normal((N, N)).astype(np.float32)
    body = ROUNDED + "z = MatMul(q, w)\n y = MatMul(z, dense)"
    path = write(source, body, {"w": ternary(), "dense": dense})
    np.savez(tmp_path / "inputs.npz", x=np.random.default_rng(2).standard_normal((3, K)).astype(np.float32))
    arguments = [str(path), "--packing", "1.6bit", "--inputs", str(tmp_path / "inputs.npz")]
    assert main([*arguments, "-o", str(tmp_path / "json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(tmp_path / "json" / "model.onnx")
    assert [item["packing"] for item in found["rewritten"]] == ["1.6bit"]
    assert [item["shape"] for item in found["left"]] == [[N, N]]
    assert found["comparison"]["inputs"] == {"x": [3, K]}
    assert main([*arguments, "-o", str(tmp_path / "table")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Rewritten" in printed
    assert "Left as they are" in printed
    assert "the greatest difference is" in printed


def test_the_command_says_when_there_is_nothing_to_do(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(source, "y = MatMul(x, w)", {"w": ternary()})
    assert main([str(path), "-o", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert "Left as they are" in printed
    assert printed.splitlines()[-1].startswith("mote-export: ")
    assert "has nothing to rewrite" in printed.splitlines()[-1]
    assert "nothing was written" in printed.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.onnx", "--target", "executorch"], "--target is for checkpoints"),
        (["model.onnx", "--shared-expert", "bf16"], "--shared-expert is for checkpoints"),
        (["model.onnx", "--context-length", "64"], "--context-length is for checkpoints"),
        (["model.onnx", "--linear", "int8"], "--linear is for checkpoints"),
        (["model.onnx", "--inputs", "x.npz", "--no-verify"], "--inputs is for verification"),
        (["model.pt", "--quantize-activations"], "--quantize-activations is for ONNX models"),
        (["model.pt", "--inputs", "x.npz"], "--inputs is for ONNX models"),
    ],
)
def test_options_of_the_other_kind_of_model_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_inputs_that_do_not_fit_are_one_sentence(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(source, ROUNDED + "y = MatMul(q, w)", {"w": ternary()})
    np.savez(tmp_path / "inputs.npz", z=np.zeros(3))
    (tmp_path / "text.npz").write_text("no arrays")
    for name, message in (
        ("inputs.npz", "ONNX Runtime cannot run the model itself"),
        ("text.npz", "is not a .npz file"),
    ):
        assert main([str(path), "-o", str(tmp_path / "out"), "--inputs", str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_packing_is_refused() -> None:
    with pytest.raises(MoteError, match="packing is '3bit'"):
        RewriteOptions("3bit")
