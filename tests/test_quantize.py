"""Post-training quantization: matrices, models in torch."""

import pytest
import torch
from tiny import tiny_checkpoint
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from mote_export.model import upcycle
from mote_export.packing import dequantize, quantize_int4, quantize_int8
from mote_export.quantize import METHODS, QuantizeOptions, WeightFormat, fitting_group, quantize, quantize_model_
from mote_export.quantize.base import CODES
from mote_runtime.errors import MoteError


def heavy_tailed(rows: int, cols: int) -> Tensor:
    """Student's t with 3 degrees of freedom: a few weights are far greater than the rest, as in trained models."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(rows, cols, generator=generator)
    return 0.02 * normal / torch.randn(3, rows, cols, generator=generator).square().mean(dim=0).sqrt()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", CODES)
@pytest.mark.parametrize(("shape", "group"), [((5, 96), 32), ((1, 77), 32), ((4, 33), 0), ((3, 1), 128)])
def test_a_matrix_is_rounded_to_the_nearest_codes(method: str, bits: int, shape: tuple[int, int], group: int) -> None:
    weight = heavy_tailed(*shape)
    weight[0] = 0.0
    quantized = quantize(weight, bits, group, method)
    least, greatest = CODES[bits]
    assert quantized.codes.shape == shape
    assert quantized.codes.dtype == torch.int8
    assert least <= quantized.codes.min() <= quantized.codes.max() <= greatest
    step = quantized.scale.float().repeat_interleave(quantized.group_size, dim=1)[:, : shape[1]]
    found = quantized.dequantize()
    assert torch.equal(found, quantized.codes * step)
    inside = (weight >= least * step) & (weight <= greatest * step)
    assert ((found - weight).abs() <= step / 2 * (1 + 1e-6))[inside].all()
    assert torch.equal(found[0], torch.zeros(shape[1]))


@pytest.mark.parametrize("bits", CODES)
def test_hqq_changes_heavy_tailed_weights_less(bits: int) -> None:
    weight = heavy_tailed(16, 256)
    rtn, hqq = (quantize(weight, bits, 64, method) for method in ("rtn", "hqq"))
    by_group = [(q.dequantize() - weight).view(16, 4, 64).square().sum(dim=2) for q in (rtn, hqq)]
    assert (by_group[1] <= by_group[0]).all()
    assert hqq.rounding(weight).relative < (0.999 if bits == 8 else 0.95) * rtn.rounding(weight).relative


def test_rtn_is_what_the_packed_formats_store() -> None:
    weight = heavy_tailed(6, 200)
    int8, int4 = quantize(weight, 8), quantize(weight, 4, 64)
    for quantized, (codes, scale) in ((int8, quantize_int8(weight)), (int4, quantize_int4(weight, 64))):
        assert torch.equal(quantized.codes, codes)
        assert torch.equal(quantized.scale, scale)
        assert torch.equal(quantized.dequantize(), dequantize(codes, scale, 64))


def test_groups_of_stock_operators_divide_the_inputs() -> None:
    assert [fitting_group(inputs, 128) for inputs in (256, 64, 160, 33)] == [128, 64, 32, 0]
    assert fitting_group(256, 0) == 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: WeightFormat(5), "bits of quantized weights is 5, expected 8, 4, 3"),
        (lambda: WeightFormat(4, group_size=48), "group_size of quantized weights is 48"),
        (lambda: QuantizeOptions(), "nothing is to be quantized"),
        (lambda: QuantizeOptions(attention=WeightFormat(4, "awq")), "quantizer is 'awq', expected 'rtn', 'hqq'"),
        (lambda: quantize(torch.full((2, 2), torch.nan), 4), "contain NaN or infinity"),
        (lambda: quantize(torch.zeros(2, 2), 2), "bits is 2"),
        (lambda: quantize(torch.zeros(0, 2), 4), r"shape \[0, 2\]"),
    ],
)
def test_wrong_options_are_named(make, sentence: str) -> None:
    with pytest.raises(MoteError, match=sentence):
        make()


def test_parts_of_a_model_are_rounded_and_counted() -> None:
    model = tiny_checkpoint(moe_layers=[1]).model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    int8, int4 = WeightFormat(8), WeightFormat(4, "hqq", 32)
    report = quantize_model_(
        model, QuantizeOptions(shared_experts=int4, dense_mlps=int8, attention=int4, projector=int8)
    )
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    mlps = {
        f"model.language_model.layers.{mlp}.{p}_proj"
        for mlp in ("0.mlp", "1.mlp.shared_expert")
        for p in ("gate", "up", "down")
    }
    attention = {f"model.language_model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"}
    projector = {f"model.multi_modal_projector.linear_{i}" for i in (1, 2)}
    assert changed == {f"{name}.weight" for name in mlps | attention | projector}
    shared, dense, attended, _ = report.parts
    assert shared.parameters == dense.parameters == 3 * 64 * 160
    assert shared.total_bytes == 3 * 64 * 160 // 2 + 2 * (3 * 64 * 160 // 32)
    assert dense.total_bytes == 3 * 64 * 160 + 2 * (160 + 160 + 64)
    assert attended.matrices == 8
    assert 0 < dense.rounding < 0.01 < shared.rounding < 0.2
    assert report.to_dict()["total_bytes"] == sum(part.total_bytes for part in report.parts)


def test_full_experts_are_rounded_one_by_one() -> None:
    torch.manual_seed(0)
    dense = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=50,
        )
    )
    model = upcycle(dense, num_experts=3, experts="full", shared_expert="none", init="random")
    experts = model.mote_layers()[0].experts
    before = experts.down_proj.detach().clone()
    report = quantize_model_(model, QuantizeOptions(routed_experts=WeightFormat(3, group_size=64)))
    assert report.parts[0].matrices == 9
    assert report.parts[0].code_bytes == 9 * 32 * 48 * 3 // 8
    for index in range(3):
        assert torch.equal(experts.down_proj[index], quantize(before[index], 3).dequantize())
    with pytest.raises(MoteError, match="shared_experts are to be quantized, but MoteForCausalLM has none"):
        quantize_model_(model, QuantizeOptions(shared_experts=WeightFormat(8)))
    with pytest.raises(MoteError, match=r"convert the model first, model\.float"):
        quantize_model_(model.bfloat16(), QuantizeOptions(attention=WeightFormat(8)))


def test_a_tied_head_stays_tied_only_in_one_format() -> None:
    int8, int4 = WeightFormat(8), WeightFormat(4)

    def weights(**parts: WeightFormat) -> tuple[nn.Parameter, nn.Parameter, int]:
        model = tiny_checkpoint().model
        report = quantize_model_(model, QuantizeOptions(**parts))
        return model.lm_head.weight, model.get_input_embeddings().weight, report.total_bytes

    rows = tiny_checkpoint().model.lm_head.weight.shape[0]
    head, embedding, size = weights(lm_head=int8, embedding=int8)
    assert head is embedding
    assert size == rows * (64 + 2)
    original = tiny_checkpoint().model.lm_head.weight
    head, embedding, size = weights(lm_head=int4)
    assert torch.equal(embedding, original)
    assert torch.equal(head, quantize(original, 4, 64).dequantize())
    assert size == rows * (32 + 2)
    head, embedding, _ = weights(lm_head=int4, embedding=int8)
    assert torch.equal(embedding, quantize(original, 8).dequantize())
    assert not torch.equal(embedding, head)
