"""The MoTE layer and model: quantizers, gradients, routing, up-cycling, and life as a transformers model."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_checkpoint
from transformers import (
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from mote_export.model import MoeSettings, MoteConfig, MoteForConditionalGeneration, MoteLayer, find_gated_mlps, upcycle
from mote_export.model.layer import router_load_balancing_loss
from mote_export.model.quantizers import fake_quantize_activations, fake_ternarize, quantize_activations, ternarize
from mote_export.passes import PackOptions, apply_passes, pack_ternary_experts


def test_ternarize_is_absmean() -> None:
    codes, scale = ternarize(torch.tensor([[0.1, -2.0], [0.5, 1.4]]))
    assert scale.item() == pytest.approx(1.0)
    assert codes.tolist() == [[0, -1], [0, 1]]  # 0.5 rounds half to even


def test_each_matrix_has_its_own_scale() -> None:
    weight = torch.randn(3, 8, 5) * torch.tensor([1.0, 10.0, 0.0])[:, None, None]
    _, scale = ternarize(weight)
    assert scale.shape == (3,)
    assert scale[2] == pytest.approx(1e-5)  # the floor, for a matrix of zeros


def test_activations_are_absmax_per_token() -> None:
    codes, step = quantize_activations(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[64, -127, 32], [0, 0, 0]]  # 63.5 and 31.75
    assert step[0].item() == pytest.approx(2 / 127)


@pytest.mark.parametrize("quantizer", [fake_ternarize, fake_quantize_activations])
def test_straight_through_gradient_is_the_identity(quantizer) -> None:
    x = torch.randn(6, 10, requires_grad=True)
    weights = torch.randn(6, 10)
    (quantizer(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights)


def test_layer_equals_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    layer = tiny_checkpoint().model.mote_layers()[0]
    x = torch.randn(9, 64)
    expected = layer.shared_expert(x)
    probability = F.softmax(layer.router(x), dim=-1)
    for token in range(len(x)):
        e = int(probability[token].argmax())
        w = {name: fake_ternarize(parameter[e]) for name, parameter in layer.experts.named_parameters()}
        xq = fake_quantize_activations(x[token])
        hidden = fake_quantize_activations(F.silu(w["gate_proj"] @ xq) * (w["up_proj"] @ xq))
        expected[token] += probability[token, e] * (w["down_proj"] @ hidden)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("top_k", "normalize"), [(1, False), (2, True), (4, False)])
def test_packed_layer_equals_fake_quantization(top_k: int, normalize: bool) -> None:
    model = tiny_checkpoint(top_k=top_k, normalize_topk=normalize).model
    x = torch.randn(2, 7, 64)
    expected = [layer(x) for layer in model.mote_layers()]
    apply_passes(model, [pack_ternary_experts(PackOptions(shared_expert="float32"))])
    for layer, reference in zip(model.get_decoder().layers, expected, strict=True):
        torch.testing.assert_close(layer.mlp(x), reference, atol=1e-5, rtol=1e-4)


def test_no_expert_is_lost_when_no_token_reaches_it() -> None:
    layer = tiny_checkpoint().model.mote_layers()[0]
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[2] = 1.0
    layer(torch.ones(5, 64))
    assert layer.expert_counts.tolist() == [0, 0, 5, 0]


def test_balancing_loss_is_one_when_balanced_and_e_when_collapsed() -> None:
    uniform = torch.full((8, 4), 0.25)
    assert router_load_balancing_loss(uniform, torch.tensor([2, 2, 2, 2])).item() == pytest.approx(1.0)
    collapsed = F.one_hot(torch.zeros(8, dtype=torch.int64), 4).float()
    assert router_load_balancing_loss(collapsed, torch.tensor([8, 0, 0, 0])).item() == pytest.approx(4.0)


def test_loss_has_the_balancing_term_in_training_only() -> None:
    model = tiny_checkpoint().model
    ids = torch.arange(10)[None]
    plain = model(input_ids=ids, labels=ids).loss
    trained = model.train()(input_ids=ids, labels=ids).loss
    balance = torch.stack([layer.aux_loss for layer in model.mote_layers()]).mean()
    torch.testing.assert_close(trained - plain, 0.01 * balance, atol=1e-5, rtol=0)


def test_upcycling_copies_the_ffn_to_every_expert_and_leaves_the_rest() -> None:
    config = tiny_checkpoint().model.config.to_dict()
    config.pop("moe")
    dense = LlavaForConditionalGeneration(LlavaConfig(**{**config, "model_type": "llava"}))
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    model = upcycle(dense, num_experts=3, layers=[1])
    layer = model.get_decoder().layers[1].mlp
    assert isinstance(layer, MoteLayer)
    assert not isinstance(model.get_decoder().layers[0].mlp, MoteLayer)
    for e in range(3):
        assert torch.equal(layer.experts.down_proj[e], layer.shared_expert.down_proj.weight)
    torch.testing.assert_close(dense.state_dict(), before)
    torch.testing.assert_close(
        model.get_decoder().layers[1].self_attn.q_proj.weight,
        before["model.language_model.layers.1.self_attn.q_proj.weight"],
    )


def test_gated_mlps_are_found_by_structure() -> None:
    llama = LlamaModel(
        LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=8)
    )
    assert find_gated_mlps(llama) == ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]


def test_save_and_load_as_transformers_do(tmp_path: Path) -> None:
    model = tiny_checkpoint(moe_layers=[1]).model
    model.save_pretrained(tmp_path)
    for loaded in (
        MoteForConditionalGeneration.from_pretrained(tmp_path),
        AutoModelForImageTextToText.from_pretrained(tmp_path),
    ):
        assert isinstance(loaded, MoteForConditionalGeneration)
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
        assert loaded.config.moe_settings == model.config.moe_settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "num_experts is 0"),
        ({"num_experts": 257}, "num_experts is 257"),
        ({"top_k": 5}, "top_k is 5"),
        ({"top_k": True}, "moe.top_k is True"),
        ({"layers": []}, "layers is"),
        ({"layers": [1, 0]}, "layers is"),
        ({"layers": ["0"]}, "expected integers"),
        ({"layers": [0, 7]}, "names layer 7, the decoder has 2"),
        ({"extra": 1}, "expected a dictionary"),
    ],
)
def test_configuration_refuses(change: dict, message: str) -> None:
    config = tiny_checkpoint().model.config.to_dict()
    config.pop("model_type")
    moe = {**config.pop("moe"), **change}
    with pytest.raises(ValueError, match=message):
        MoteConfig(**config, moe=moe)


def test_settings_round_trip() -> None:
    settings = MoeSettings(4, 2, True, (0, 3), 0.02)
    assert MoeSettings.from_dict(settings.to_dict()) == settings
