"""ONNX models in float16 and bfloat16: scales are found to the bit, and the operator stands between casts to float32 and back."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from test_onnx_import import CONSTANTS, ROUNDED, Mixture, codes, operators, run, write

from mote_export.onnx_import import NothingToRewriteError, RewriteOptions, RewriteResult, rewrite_onnx
from mote_runtime.errors import MoteError

HALVES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
UNIT = 2.0**-7  # of what a number keeps in bfloat16


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source" / "model.onnx"


def rewrite(path: Path, verify: bool = True, rtol: float = 0.02, **options: Any) -> RewriteResult:
    return rewrite_onnx(path, path.parent.parent / "out", RewriteOptions(**options), rtol=rtol, verify=verify)


def rounded_in_float32(half: str, x: str = "x") -> str:
    """As transformers' layers write it: a token is rounded in float32, whatever the model's type is."""
    body = ROUNDED.replace("(x)", "(wide)").replace("(x,", "(wide,")
    return f"wide = Cast <to = 1> ({x})\n{body}\nh = Cast <to = {TYPES[half]}> (q)\n"


def declared(half: str) -> dict[str, str]:
    return {"inputs": f"{half}[b, 48] x", "outputs": f"{half}[b, 32] y"}


def scales(path: Path) -> list[NDArray[Any]]:
    """Of the TernaryMatMul nodes of a file."""
    graph = onnx.load(path).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    return [arrays[node.input[2]] for node in graph.node if node.op_type == "TernaryMatMul"]


@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
@pytest.mark.parametrize(
    ("half", "scale"),
    [("float16", 0.0371), ("float16", 3e-7), ("bfloat16", 0.0371), ("bfloat16", 1.7e-20), ("bfloat16", 2e6)],
)
def test_the_scale_of_half_a_weight_is_kept_to_the_bit(source: Path, half: str, scale: float, external: bool) -> None:
    """Also where the other half type has no such number: 3e-7 is not normal in float16, the last two have no place in it at all."""
    weight = (codes() * np.float32(scale)).astype(HALVES[half])
    path = write(
        source, rounded_in_float32(half) + "y = MatMul(h, w)", {"w": weight}, external=external, **declared(half)
    )
    result = rewrite(path, verify=False)
    np.testing.assert_array_equal(scales(result.file), [[np.abs(weight).max().astype(np.float32)]])
    assert result.rewritten[0].bytes_before == 2 * weight.size
    assert result.rewritten[0].error == 0.0


@pytest.mark.parametrize("half", HALVES)
def test_the_operator_stands_between_casts(source: Path, half: str) -> None:
    body = (
        f"n = Cast <to = {TYPES[half]}> (x)\n{rounded_in_float32(half, 'n')}z = Gemm(h, w, bias)\ny = Cast <to = 1> (z)"
    )
    weight = (codes() * np.float32(0.0371)).astype(HALVES[half])
    bias = np.zeros(32, HALVES[half])
    result = rewrite(write(source, body, {"w": weight, "bias": bias}), verify=False)
    written = onnx.load(result.file)
    assert [node.op_type for node in written.graph.node] == ["Cast", "Cast", "TernaryMatMul", "Cast", "Add", "Cast"]
    to = [helper.get_attribute_value(node.attribute[0]) for node in written.graph.node if node.op_type == "Cast"]
    assert to == [TYPES[half], TensorProto.FLOAT, TYPES[half], TensorProto.FLOAT]
    x = np.random.default_rng(0).standard_normal((3, 48)).astype(np.float32)
    expected = ReferenceEvaluator(onnx.load(source)).run(None, {"x": x})[0]
    if half == "bfloat16":  # ONNX Runtime has no Add for it on CPUs: what is before it is in float32
        del written.graph.node[4:], written.graph.output[:]
        written.graph.node[3].attribute[0].i = TensorProto.FLOAT
        written.graph.output.append(
            helper.make_tensor_value_info(written.graph.node[3].output[0], TensorProto.FLOAT, None)
        )
        onnx.save(written, result.file)
    found = run(result.file, {"x": x})
    np.testing.assert_allclose(found, expected, atol=UNIT * np.abs(expected).max())


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("u = Cast <to = 1> (w)\n y = MatMul(q, u)", ["TernaryMatMul"]),
        ("t = Transpose <perm = [1, 0]> (v)\n u = Cast <to = 1> (t)\n y = MatMul(q, u)", ["TernaryMatMul"]),
        ("u = DequantizeLinear(t8, unit)\n k = Cast <to = 1> (u)\n y = MatMul(q, k)", ["TernaryMatMul"]),
    ],
    ids=["cast", "transposed", "dequantized"],
)
def test_weights_that_the_graph_widens_are_found(source: Path, half: str, body: str, kept: list[str]) -> None:
    weight = (codes() * np.float32(0.0371)).astype(HALVES[half])
    weights = {"w": weight, "v": weight.T.copy(), "t8": codes().astype(np.int8), "unit": np.array(0.0371, HALVES[half])}
    runs = half == "float16" or "Dequantize" not in body  # ONNX Runtime has none for bfloat16 on CPUs
    result = rewrite(write(source, ROUNDED + body, weights, external=True), verify=runs, rtol=1e-5)
    assert operators(result.file) == kept
    np.testing.assert_array_equal(scales(result.file), [[np.abs(weight).max().astype(np.float32)]])


@pytest.mark.parametrize("half", HALVES)
def test_a_factor_behind_the_cast_is_part_of_the_scale(source: Path, half: str) -> None:
    unit = np.array([0.0371], HALVES[half])
    body = rounded_in_float32(half) + "z = MatMul(h, w)\n y = Mul(z, unit)"
    path = write(source, body, {"w": codes().astype(HALVES[half]), "unit": unit}, **declared(half))
    result = rewrite(path, verify=half == "float16")
    assert operators(result.file) == ["Cast", "TernaryMatMul", "Cast"]
    np.testing.assert_array_equal(scales(result.file), [unit.astype(np.float32)])


@pytest.mark.parametrize("half", HALVES)
def test_rounding_in_half_precision_is_found(source: Path, half: str) -> None:
    """As packed layers of BitNet do it, whose floor of 1e-5 is a number of that type, 0.14% beside it in float16."""
    body, weights = ROUNDED, {"w": (codes() * np.float32(0.0371)).astype(HALVES[half])}
    for name in ("floor", "top", "bottom"):
        body = body.replace(name, f"{name}_half")
        weights[f"{name}_half"] = CONSTANTS[name].astype(HALVES[half])
    result = rewrite(
        write(source, body + "y = MatMul(q, w)", weights, opset=22, **declared(half)), verify=half == "float16"
    )
    assert operators(result.file) == ["Cast", "TernaryMatMul", "Cast"]
    assert result.rewritten[0].activations == "absorbed"


@pytest.mark.parametrize("half", HALVES)
def test_half_a_floor_that_is_another_number_is_refused(source: Path, half: str) -> None:
    body = ROUNDED.replace("floor", "high")
    weights = {"w": (codes() * np.float32(0.0371)).astype(HALVES[half]), "high": np.array(1.1e-5, HALVES[half])}
    for name in ("top", "bottom"):
        body = body.replace(name, f"{name}_half")
        weights[f"{name}_half"] = CONSTANTS[name].astype(HALVES[half])
    with pytest.raises(NothingToRewriteError, match="not rounded to 8 bits"):
        rewrite(write(source, body + "y = MatMul(q, w)", weights, **declared(half)), verify=False)


@pytest.mark.parametrize("half", HALVES)
def test_half_a_mixture_becomes_one_operator(source: Path, half: str) -> None:
    """Its part around the experts is run in float32 where ONNX Runtime has no operators of its type."""
    module = Mixture("stacked", 2, has_shared=False).to(getattr(torch, half)).eval()
    example = (torch.randn(2, 5, 32).to(getattr(torch, half)),)
    axes = {"x": {1: "tokens"}}
    torch.onnx.export(module, example, source, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=axes)
    result = rewrite(source, verify=half == "float16")
    assert [item.op for item in result.rewritten] == ["TernaryMoE"]
    assert set(operators(result.file)) == {"Cast", "Constant", "Reshape", "Shape", "TernaryMoE"}
    graph = onnx.load(result.file).graph
    node = next(node for node in graph.node if node.op_type == "TernaryMoE")
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    np.testing.assert_array_equal(arrays[node.input[1]], module.router.weight.detach().float().numpy())
    for index, expert in enumerate(module.experts):
        for place, name in enumerate(("gate_proj", "up_proj")):
            largest = expert.get_parameter(f"{name}.weight").detach().float().abs().max()
            assert arrays[node.input[3]][index, place] == largest


def test_what_onnxruntime_cannot_run_says_how_to_do_without(source: Path) -> None:
    weight = codes().astype(ml_dtypes.bfloat16)
    path = write(source, rounded_in_float32("bfloat16") + "y = MatMul(h, w)", {"w": weight}, **declared("bfloat16"))
    with pytest.raises(MoteError, match=r"cannot run the model itself on this processor.*--no-verify.*MatMul"):
        rewrite(path)
    assert not (source.parent.parent / "out").exists()


@pytest.mark.parametrize("to", [TensorProto.INT32, TensorProto.INT8])
def test_a_cast_to_integers_is_no_rounding(source: Path, to: int) -> None:
    """It cuts off what is behind the point of a token's numbers, so the product is another one."""
    body = ROUNDED + f"j = Cast <to = {to}> (q)\n k = Cast <to = 1> (j)\n y = MatMul(k, w)"
    with pytest.raises(NothingToRewriteError, match="not rounded to 8 bits"):
        rewrite(write(source, body, {"w": codes()}), verify=False)
