"""L3: passes on single modules: what they compute, what they refuse, and what torch.export and ONNX make of the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto
from operator_cases import INPUTS
from tiny import tiny_checkpoint
from torch import Tensor, nn
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights

from mote_export.model import MoteLayer
from mote_export.model.configuration import MoeSettings
from mote_export.model.quantizers import ternarize
from mote_export.packing import PACKINGS, SHARED_FORMATS, dequantize
from mote_export.passes import (
    PackedTernaryLinear,
    PackOptions,
    PassError,
    apply_passes,
    pack_ternary_experts,
    pack_ternary_linear,
)
from mote_export.passes.attention import is_decoder_attention
from mote_export.passes.cached_sdpa import SideBySide, cached_sdpa
from mote_export.passes.onnx_ternary_matmul import ONNX_TERNARY_MATMUL
from mote_export.passes.onnx_ternary_moe import ONNX_TERNARY_MOE
from mote_export.targets.onnx.external_data import save_with_external_data
from mote_runtime.errors import MoteError

OPTIONS = [
    PackOptions(packing, shared, group)
    for packing in PACKINGS
    for shared, group in (("float32", 128), ("bf16", 128), ("int8", 128), ("int4", 32), ("int4", 128))
]
NUM_SHARED_INPUTS = {"float32": 0, "bf16": 2, "int8": 4, "int4": 4}


def named(options: PackOptions) -> str:
    return f"{options.packing}-{options.shared_expert}-{options.shared_group_size}"


def mote_layer() -> MoteLayer:
    return tiny_checkpoint(hidden_size=40, intermediate_size=100, top_k=2).model.mote_layers()[0]


def rewritten(module: nn.Module, *passes: Any) -> nn.Module:
    """A pass does not replace the root."""
    holder = nn.ModuleDict({"layer": module})
    apply_passes(holder, passes)
    return holder["layer"].eval()


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_packed_layer_equals_the_layer_with_a_rounded_shared_expert(options: PackOptions) -> None:
    x = torch.randn(2, 7, 40, generator=torch.Generator().manual_seed(1))
    expected = mote_layer()
    if options.has_shared_inside:
        for parameter in expected.shared_expert.parameters():
            values, scale = SHARED_FORMATS[options.shared_expert].quantize(parameter.data, options.shared_group_size)
            parameter.data = dequantize(values, scale, options.shared_group_size)
    packed = rewritten(mote_layer(), pack_ternary_experts(options))
    # The operator quantizes activations for integer weights; the rounded layer here does not.
    tolerance = 0.02 if options.shared_expert in ("int8", "int4") else 1e-5
    with torch.no_grad():
        torch.testing.assert_close(packed(x), expected(x), atol=tolerance * float(expected(x).std()), rtol=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_absent_inputs_survive_torch_export(options: PackOptions) -> None:
    layer = rewritten(mote_layer(), pack_ternary_experts(options))
    x = torch.randn(1, 5, 40)
    program = torch.export.export(layer, (x,), dynamic_shapes=({1: torch.export.Dim("s", max=64)},), strict=False)
    (node,) = [node for node in program.graph.nodes if node.target is torch.ops.mote.ternary_moe.default]
    assert [argument is None for argument in node.args[6:10]] == absent(options)
    assert torch.equal(program.module()(x[:, :3]), layer(x[:, :3]))


def absent(options: PackOptions) -> list[bool]:
    count = NUM_SHARED_INPUTS[options.shared_expert]
    return {0: [True] * 4, 2: [False, True] * 2, 4: [False] * 4}[count]


def to_onnx(module: nn.Module, x: Tensor, path: Path) -> onnx.ModelProto:
    program = torch.onnx.export(
        module, (x,), dynamo=True, opset_version=21, dynamic_shapes=({1: "sequence"},), verbose=False
    )
    assert program is not None
    save_with_external_data(program, path)
    onnx.checker.check_model(str(path))
    return onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_node_in_onnx(options: PackOptions, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(intermediate_size=2080, top_k=2, normalize_topk=True)  # scales of 1 KiB and more
    layer = rewritten(checkpoint.model.mote_layers()[0], pack_ternary_experts(options), ONNX_TERNARY_MOE)
    model = to_onnx(layer, torch.randn(1, 5, 64), tmp_path / "layer.onnx")
    (node,) = [node for node in model.graph.node if node.domain == "mote"]
    expected = [
        "" if is_absent else f"experts.{name}"
        for name, is_absent in zip(INPUTS["TernaryMoE"], [False] * 5 + absent(options), strict=True)
    ]
    while not expected[-1]:
        expected.pop()
    assert list(node.input)[1:] == expected
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes == {
        "num_experts": 4, "top_k": 2, "normalize_topk": 1, "intermediate_size": 2080, "activation": b"silu",
        "packing": options.packing.encode(), "layout_version": 1, "shared_format": options.shared_format.encode(),
        "shared_group_size": options.operator_group_size,
    }  # fmt: skip
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in ("experts.shared_gate_up_scale", "experts.shared_down_scale"):
        assert (name in weights) == (options.shared_expert in ("int8", "int4"))
        if name in weights:
            assert weights[name].data_type == TensorProto.BFLOAT16
    large = [tensor for tensor in weights.values() if tensor.external_data]
    if options.shared_expert == "int4":
        assert "experts.shared_gate_up_scale" in {tensor.name for tensor in large}
    for tensor in large:
        assert int({entry.key: entry.value for entry in tensor.external_data}["offset"]) % 64 == 0


def test_a_shared_expert_of_other_layers_is_refused_inside_and_kept_outside() -> None:
    layer = mote_layer()
    layer.shared_expert.up_proj = AutoBitLinear(40, 100, bias=False, online_quant=True)
    with pytest.raises(PassError, match=r"cannot rewrite layer: up_proj of its shared expert is of type AutoBitLinear"):
        rewritten(layer, pack_ternary_experts(PackOptions(shared_expert="int4")))
    packed = rewritten(layer, pack_ternary_experts(PackOptions(shared_expert="float32")), pack_ternary_linear())
    assert isinstance(packed.get_submodule("shared_expert.up_proj"), PackedTernaryLinear)


def test_a_shared_expert_that_is_not_finite_is_refused() -> None:
    layer = mote_layer()
    layer.shared_expert.up_proj.weight.data[3, 4] = torch.inf
    with pytest.raises(MoteError, match="contains NaN or infinity"):
        rewritten(layer, pack_ternary_experts())


def test_wider_layers_than_the_operators_take_are_refused() -> None:
    shared = nn.Module()
    shared.gate_proj, shared.up_proj, shared.down_proj = (
        nn.Linear(1, 131073),
        nn.Linear(1, 131073),
        nn.Linear(131073, 1),
    )
    with pytest.raises(PassError, match="has 131073 rows or columns, at most 131072 can be packed"):
        rewritten(
            MoteLayer(shared, MoeSettings(num_experts=1, top_k=1, normalize_topk=False, layers=(0,))),
            pack_ternary_experts(),
        )
    with pytest.raises(PassError, match="has 131073 rows or columns, at most 131072 can be packed"):
        rewritten(AutoBitLinear(1, 131073, bias=False, online_quant=True), pack_ternary_linear())


def online(rms_norm: bool = False) -> AutoBitLinear:
    layer = AutoBitLinear(40, 28, bias=False, online_quant=True, use_rms_norm=rms_norm)
    if layer.rms_norm is not None:
        layer.rms_norm.weight.data.uniform_(0.5, 2.0)
    return layer


def offline(rms_norm: bool = False) -> AutoBitLinear:
    layer = AutoBitLinear(40, 28, bias=False, online_quant=False, use_rms_norm=rms_norm)
    layer.weight.data = torch.randint(-1, 2, (28, 40)).float() * 0.75
    layer.weight_scale.fill_(0.031)
    return layer


def packed_by_transformers(rms_norm: bool = False) -> BitLinear:
    layer = BitLinear(40, 28, bias=False, dtype=torch.float32, use_rms_norm=rms_norm)
    layer.weight.copy_(pack_weights(torch.randint(-1, 2, (28, 40)).float()))
    layer.weight_scale.fill_(21.7)
    return layer


@pytest.fixture
def eager() -> Any:
    """transformers compiles these layers when they run, which takes a minute and changes nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("rms_norm", [False, True])
@pytest.mark.parametrize("make", [online, offline, packed_by_transformers])
def test_bitnet_layers_compute_what_transformers_computes(
    make: Callable[[bool], nn.Module], rms_norm: bool, packing: str
) -> None:
    torch.manual_seed(3)
    layer, x = make(rms_norm).eval(), torch.randn(2, 9, 40)
    with torch.no_grad():
        expected = layer(x)
        packed = rewritten(layer, pack_ternary_linear(packing))
        assert isinstance(packed, PackedTernaryLinear)
        torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_an_online_layer_is_packed_as_an_expert_is() -> None:
    layer = online()
    codes, scale = ternarize(layer.weight.data)
    packed = rewritten(layer, pack_ternary_linear("1.6bit"))
    assert torch.equal(packed.scale, scale.reshape(1))
    assert packed.packed.numpy().tobytes() == PACKINGS["1.6bit"].pack(codes.to(torch.int8).numpy()).tobytes()


def not_ternary() -> nn.Module:
    layer = offline()
    layer.weight.data[2, 3] = 0.5
    return layer


def infinite_scale() -> nn.Module:
    layer = packed_by_transformers()
    layer.weight_scale.zero_()
    return layer


def damaged_code() -> nn.Module:
    layer = packed_by_transformers()
    layer.weight[0, 0] = 3
    return layer


REFUSED = {
    lambda: AutoBitLinear(8, 8, bias=True, online_quant=True): "it has a bias",
    not_ternary: r"1 of its 1120 weights are not -1, 0 or 1 times one number",
    damaged_code: r"1 of its 1120 weights are not",
    infinite_scale: "its scale is inf, expected a finite number of at least 0",
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_bitnet_layers_that_cannot_be_packed_say_why(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(PassError, match=f"pack-ternary-linear cannot rewrite layer: {reason}"):
        rewritten(make(), pack_ternary_linear())


@pytest.mark.usefixtures("eager")
def test_weights_that_are_nearly_ternary_are_rounded_if_asked_for() -> None:
    layer = not_ternary().eval()
    packed = rewritten(layer, pack_ternary_linear(ternarize=True))
    assert isinstance(packed, PackedTernaryLinear)
    assert 0.001 < packed.error < 0.03
    layer.weight.data = torch.where(
        layer.weight.abs() > 0.3, layer.weight.sign() * packed.scale / layer.weight_scale, 0.0
    )
    x = torch.randn(3, 40)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(PassError, match="their two bits are 11"):
        rewritten(damaged_code(), pack_ternary_linear(ternarize=True))


def test_an_offline_layer_of_zeros_gives_zeros() -> None:
    layer = offline()
    layer.weight.data.zero_()
    assert not rewritten(layer, pack_ternary_linear())(torch.randn(1, 40)).any()


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = online(rms_norm=True), AutoBitLinear(28, 40, bias=False, online_quant=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


@pytest.mark.usefixtures("eager")
def test_matmul_nodes_in_onnx_and_in_torch_export(tmp_path: Path) -> None:
    torch.manual_seed(4)
    module, x = TwoLayers().eval(), torch.randn(1, 6, 40)
    apply_passes(module, [pack_ternary_linear()])
    shapes = ({1: torch.export.Dim("s", min=2, max=64)},)
    program = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=False)
    assert sum(node.target is torch.ops.mote.ternary_matmul.default for node in program.graph.nodes) == 2
    with torch.no_grad():
        assert torch.equal(program.module()(x[:, :2]), module(x[:, :2]))
    apply_passes(module, [ONNX_TERNARY_MATMUL])
    model = to_onnx(module, x, tmp_path / "model.onnx")
    nodes = [node for node in model.graph.node if node.op_type == "TernaryMatMul"]
    assert [list(node.input)[1:] for node in nodes] == [
        ["first.packed", "first.scale"],
        ["second.packed", "second.scale"],
    ]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in nodes[0].attribute}
    assert attributes == {"in_features": 40, "out_features": 28, "packing": b"2bit", "layout_version": 1}


@pytest.mark.usefixtures("eager")
def test_attention_with_ternary_projections_is_still_attention() -> None:
    """Its projections stay apart: one linear layer of all three would have one scale, and stock weights."""
    pytest.importorskip("executorch.exir")
    decoder = tiny_checkpoint().model.get_decoder()
    attention = decoder.layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        linear = attention.get_submodule(name)
        attention.set_submodule(
            name, AutoBitLinear(linear.in_features, linear.out_features, bias=False, online_quant=True)
        )
    x = torch.randn(1, 3, 64)
    with torch.no_grad():
        expected = torch.cat([attention.get_submodule(name)(x) for name in ("q_proj", "k_proj", "v_proj")], dim=-1)
    apply_passes(decoder, [pack_ternary_linear()])
    assert is_decoder_attention(attention)
    apply_passes(decoder, [cached_sdpa(32)])
    projections = decoder.layers[0].self_attn.qkv_proj
    assert isinstance(projections, SideBySide)
    torch.testing.assert_close(projections(x), expected, rtol=1e-5, atol=1e-5)
