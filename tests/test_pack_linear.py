"""Linear layers as `mote::QuantizedMatMul`: what is stored, that blocks of rows are the whole, and how both exporters spell it."""

import importlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tiny import tiny_checkpoint
from torch import Tensor, nn

from mote_export.packing import SHARED_FORMATS, unpack_scales
from mote_export.passes import PackedFormat, PackedLinear, PassError, apply_passes, pack_linear
from mote_export.passes.onnx_packed_linear import ONNX_PACKED_LINEAR
from mote_export.passes.pack_linear import can_concatenate, concatenate_packed
from mote_export.quantize.matrix import quantize
from mote_export.verify import rounds_activations
from mote_runtime import get_library_path
from mote_runtime.errors import MoteError

FORMATS = [PackedFormat("bf16"), PackedFormat("int8"), PackedFormat("int4", 32), PackedFormat("int4", 64, "hqq")]


def some_linear(
    inputs: int = 45, outputs: int = 70, bias: bool = True, dtype: torch.dtype = torch.float32
) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype)


def weights_of(linear: PackedLinear) -> Tensor:
    """What the packed numbers stand for: float32 [N, K]."""
    form, shape = linear.format, (linear.out_features, linear.in_features)
    values = torch.from_numpy(SHARED_FORMATS[form.name].packing.unpack(linear.weight.numpy(), *shape))
    if linear.scale is None:
        return values.view(torch.bfloat16).float()
    scale = unpack_scales(linear.scale, shape[0])
    return values * scale.repeat_interleave(form.group_size or shape[1], dim=1)[:, : shape[1]]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: f"{form.name}-{form.quantizer}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_holds_the_quantized_weights(form: PackedFormat, dtype: torch.dtype) -> None:
    linear = some_linear(dtype=dtype)
    packed = PackedLinear.of(linear, form)
    bits = SHARED_FORMATS[form.name].bits
    if bits is None:
        expected = linear.weight.detach().bfloat16().float()
    else:
        quantized = quantize(linear.weight, bits, form.group_size, form.quantizer)
        expected = quantized.dequantize()
        assert packed.rounding.relative == pytest.approx(quantized.rounding(linear.weight).relative)
    torch.testing.assert_close(weights_of(packed), expected, rtol=0, atol=0)
    assert packed.bias is not None
    assert packed.bias.dtype == torch.float32

    x = torch.randn(3, 2, 45)
    y = packed(x)
    assert y.shape == (3, 2, 70)
    torch.testing.assert_close(y, x @ expected.T + linear.bias.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("form", FORMATS[:3], ids=lambda form: form.name)
def test_some_rows_at_a_time_are_the_whole(form: PackedFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = some_linear()
    whole = PackedLinear.of(linear, form)
    # The package has the pass under its module's name.
    monkeypatch.setattr(importlib.import_module("mote_export.passes.pack_linear"), "WEIGHTS_AT_ONCE", 32 * 45)
    some = PackedLinear.of(linear, form)
    assert torch.equal(some.weight, whole.weight)
    assert whole.scale is None or torch.equal(some.scale, whole.scale)  # type: ignore[arg-type]
    assert some.rounding.relative == pytest.approx(whole.rounding.relative)


def test_only_chosen_plain_layers_are_packed() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(some_linear(), nn.GELU(), some_linear(70, 45), Special(45, 3))
    counts = apply_passes(model, [pack_linear([model[2], model[3]], PackedFormat("int8"))])
    assert counts == {"pack-linear": 1}
    assert [type(module) for module in model] == [nn.Linear, nn.GELU, PackedLinear, Special]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda linear: linear.weight.data.fill_(float("nan")), "NaN or infinity"),
        (lambda linear: linear.bias.data.fill_(float("inf")), "its bias contains NaN or infinity"),
    ],
)
@pytest.mark.parametrize("form", FORMATS[:3], ids=lambda form: form.name)
def test_what_is_not_finite_is_refused(form: PackedFormat, damage, message: str) -> None:
    linear = some_linear()
    damage(linear)
    with pytest.raises(MoteError, match=message):
        PackedLinear.of(linear, form)


def test_numbers_beyond_bfloat16_are_refused() -> None:
    linear = some_linear()
    linear.weight.data[3, 3] = torch.finfo(torch.float32).max
    with pytest.raises(MoteError, match="round to it"):
        PackedLinear.of(linear, PackedFormat("bf16"))


def test_a_layer_that_is_too_wide_is_refused() -> None:
    model = nn.Sequential(nn.Linear((1 << 17) + 1, 1, device="meta"))
    with pytest.raises(PassError, match="cannot rewrite 0: it has 1 x 131073 weights"):
        apply_passes(model, [pack_linear([model[0]], PackedFormat("int8"))])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int3",), "format of packed weights is 'int3'"),
        (("int4",), "group_size of packed weights is 0, expected 32, 64, 128, 256"),
        (("int8", 32), "group_size of packed weights is 32, expected 0"),
        (("int8", 0, "gptq"), "quantizer of packed weights is 'gptq'"),
    ],
)
def test_formats_are_checked(arguments: tuple, message: str) -> None:
    with pytest.raises(MoteError, match=message):
        PackedFormat(*arguments)


@pytest.mark.parametrize("form", FORMATS[:3], ids=lambda form: form.name)
@pytest.mark.parametrize("biases", [(False, False), (True, False), (True, True)])
def test_layers_of_one_input_become_one(form: PackedFormat, biases: tuple[bool, bool]) -> None:
    linears = [PackedLinear.of(some_linear(45, size, bias), form) for size, bias in zip((32, 16), biases, strict=True)]
    assert can_concatenate(linears)
    x = torch.randn(5, 45)
    assert torch.equal(concatenate_packed(linears)(x), torch.cat([linear(x) for linear in linears], dim=-1))
    assert not can_concatenate([*linears, PackedLinear.of(some_linear(45, 17), form)])
    assert not can_concatenate([*linears, some_linear(45, 16)])


def test_nodes_in_onnx_and_in_torch_export(tmp_path: Path) -> None:
    model = nn.Sequential(*(some_linear(bias=form.name != "int8") for form in FORMATS[:3])).eval()
    for index, form in enumerate(FORMATS[:3]):
        model[index] = PackedLinear.of(some_linear(45, 45, bias=form.name != "int8"), form)
    x = torch.randn(7, 45)
    expected = model(x).numpy()
    program = torch.export.export(model, (x,))
    operators = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert operators == [torch.ops.mote.quantized_matmul.default] * 3

    apply_passes(model, [ONNX_PACKED_LINEAR])
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert [(node.domain, node.op_type, len(node.input)) for node in nodes] == [
        ("mote", "QuantizedMatMul", 4),  # bf16: the scale is absent, the bias is there
        ("mote", "QuantizedMatMul", 3),
        ("mote", "QuantizedMatMul", 4),
    ]
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    session = ort.InferenceSession(tmp_path / "model.onnx", options)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("form", FORMATS[:3], ids=lambda form: form.name)
def test_verification_knows_which_layers_round_their_inputs(form: PackedFormat) -> None:
    model = tiny_checkpoint(layers=1).model
    assert not rounds_activations(model)
    model.lm_head = PackedLinear.of(model.lm_head, form)
    assert rounds_activations(model) == (form.name != "bf16")
