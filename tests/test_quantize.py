"""Post-training quantization: matrices, models in torch, and the same values in both runtimes."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from tiny import byte_tokenizer, companion_files, tiny_checkpoint
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from mote_export import verify
from mote_export.checkpoint import Checkpoint
from mote_export.cli.export import main
from mote_export.defaults import QUANTIZERS
from mote_export.exporter import ExportResult, export
from mote_export.model import MoteForCausalLM, upcycle
from mote_export.packing import dequantize, quantize_int4, quantize_int8
from mote_export.passes import PackOptions, apply_passes, pack_ternary_experts, quantize_passes
from mote_export.passes.onnx_quantized import ONNX_QUANTIZED_EMBEDDING, ONNX_QUANTIZED_LINEAR
from mote_export.passes.quantize_linear import Activations, QuantizedEmbedding, QuantizedLinear, set_activations
from mote_export.passes.stock_moe import stock_moe
from mote_export.passes.xnnpack_quantized import LOOKED_UP_EMBEDDING, XNNPACK_LINEAR
from mote_export.quantize import METHODS, QuantizeOptions, WeightFormat, fitting_group, quantize, quantize_model_
from mote_export.quantize.base import CODES
from mote_runtime.errors import MoteError
from mote_runtime.profile.trace.program import read_program


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


def test_the_command_offers_every_method() -> None:
    assert tuple(METHODS) == QUANTIZERS


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
def test_wrong_options_are_named(make: Callable[[], object], sentence: str) -> None:
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


def moe_llava(**sizes: int) -> MoteForCausalLM:
    """The layer of MoE-LLaVA, whose experts and routing differ, over a tiny text model."""
    torch.manual_seed(0)
    values = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    config = Qwen2Config(**{**values, **sizes}, num_key_value_heads=2, max_position_embeddings=128)
    dense = Qwen2ForCausalLM(config)
    model = upcycle(
        dense, num_experts=3, top_k=2, normalize_topk=True, experts="full", shared_expert="none", init="random"
    )
    for layer in model.mote_layers():
        torch.nn.init.normal_(layer.router.weight, std=0.5)
    return model.eval()


def test_full_experts_are_rounded_one_by_one() -> None:
    model = moe_llava()
    experts = model.mote_layers()[0].experts
    before = experts.down_proj.detach().clone()
    report = quantize_model_(model, QuantizeOptions(routed_experts=WeightFormat(3, group_size=64)))
    assert report.parts[0].matrices == 9
    assert report.parts[0].code_bytes == 9 * 64 * 96 * 3 // 8
    for index in range(3):  # 64 does not divide 96, 32 does
        assert torch.equal(experts.down_proj[index], quantize(before[index], 3, 32).dequantize())
    with pytest.raises(MoteError, match="shared_experts are to be quantized, but MoteForCausalLM has none"):
        quantize_model_(model, QuantizeOptions(shared_experts=WeightFormat(8)))
    with pytest.raises(MoteError, match=r"convert the model first, model\.float"):
        quantize_model_(model.bfloat16(), QuantizeOptions(attention=WeightFormat(8)))


def test_the_stock_layer_of_the_baseline_computes_what_the_rounded_model_does() -> None:
    model, stock = moe_llava(), moe_llava()
    x = torch.randn(2, 5, 64)
    apply_passes(stock, [stock_moe(PackOptions(full_experts="int3", linear_group_size=32, quantizer="hqq"))])
    with torch.no_grad():
        unrounded = model.mote_layers()[0](x)
        quantize_model_(model, QuantizeOptions(routed_experts=WeightFormat(3, "hqq", 32)))
        expected = model.mote_layers()[0](x)
        found = stock.get_decoder().layers[0].mlp(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - unrounded).abs().max() > 0.01


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


# bits, outputs, inputs, group, bias: an odd number of inputs, one row, groups that are smaller than asked for.
MATRICES = [
    (4, 24, 128, 32, True),
    (8, 24, 96, 0, False),
    (4, 24, 33, 32, True),
    (3, 5, 64, 128, False),
    (8, 1, 77, 0, True),
]


class Several(nn.Module):
    """Linear layers and embeddings of one table each, of all kinds; forward: xs and ids to two lists."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.linears, self.embeddings = nn.ModuleList(), nn.ModuleList()
        for bits, rows, cols, group, bias in MATRICES:
            weight = quantize(heavy_tailed(rows, cols), bits, fitting_group(cols, group), method)
            self.linears.append(QuantizedLinear(weight, torch.arange(rows) / 7 if bias else None))
            self.embeddings.append(QuantizedEmbedding(weight))

    def forward(self, xs: list[Tensor], ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        pairs = zip(self.linears, xs, strict=True)
        return [linear(x) for linear, x in pairs], [embedding(ids) for embedding in self.embeddings]


def inputs_of(length: int) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(length)
    xs = [torch.randn(1, length, cols) for _, _, cols, _, _ in MATRICES]
    for x in xs:
        x[0, 1] = 0.0
    return xs, torch.zeros(1, length, dtype=torch.int64)


def assert_same(found: list[Tensor], model: Several, xs: list[Tensor], ids: Tensor) -> None:
    linears, embeddings = model(xs, ids)
    for got, expected in zip(found, [*linears, *embeddings], strict=True):
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 2e-6 * expected.abs().max()
    for got, expected in zip(found[len(linears) :], embeddings, strict=True):
        assert torch.equal(got, expected)


def test_onnxruntime_computes_what_torch_does() -> None:
    model, lowered = Several("rtn"), Several("rtn")
    apply_passes(lowered, [ONNX_QUANTIZED_LINEAR, ONNX_QUANTIZED_EMBEDDING])
    axes = {1: "length"}
    program = torch.onnx.export(
        lowered.eval(), inputs_of(3), dynamo=True, opset_version=21, verbose=False, dynamic_shapes=([axes] * 5, axes)
    )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    xs, ids = inputs_of(7)
    names = [item.name for item in session.get_inputs()]
    found = session.run(None, dict(zip(names, [item.numpy() for item in (*xs, ids)], strict=True)))
    set_activations(model, "int8-by-block")
    assert_same([torch.from_numpy(np.asarray(item)) for item in found], model, xs, ids)


def test_executorch_computes_what_torch_does() -> None:
    from executorch.extension.pybindings import portable_lib

    from mote_export.targets.executorch.export import lower

    model, lowered = Several("hqq"), Several("hqq")
    apply_passes(lowered, [XNNPACK_LINEAR, LOOKED_UP_EMBEDDING])
    axes = {1: torch.export.Dim("length", min=1, max=16)}
    program = torch.export.export(lowered.eval(), inputs_of(3), dynamic_shapes=([axes] * 5, axes), strict=False)
    manager = lower({"text_decoder": program}, {}, ("text_decoder",))
    module = portable_lib._load_for_executorch_from_buffer(manager.buffer)
    xs, ids = inputs_of(7)
    set_activations(model, "int8-by-token")
    assert_same(list(module.run_method("text_decoder", (*xs, ids))), model, xs, ids)


def test_packed_shared_experts_have_the_quantizers_values() -> None:
    model, rounded = tiny_checkpoint(layers=1).model, tiny_checkpoint(layers=1).model
    apply_passes(
        model, [pack_ternary_experts(PackOptions(shared_expert="int4", shared_group_size=32, quantizer="hqq"))]
    )
    quantize_model_(rounded, QuantizeOptions(shared_experts=WeightFormat(4, "hqq", 32)))
    apply_passes(rounded, [pack_ternary_experts(PackOptions(shared_expert="float32"))])
    x = torch.randn(4, 64)
    with torch.no_grad():
        found, expected = (each.get_decoder().layers[0].mlp(x) for each in (model, rounded))
    difference = (found - expected).square().mean().sqrt() / expected.std()
    assert difference < 0.02  # the operator rounds activations to int8, 0.5 % of theirs a matrix


def int8_baseline(activations: Activations) -> MoteForCausalLM:
    """All linear layers in 8 bits; only activations differ."""
    model, pack = moe_llava(), PackOptions(linear="int8", full_experts="int8")
    apply_passes(model, [*quantize_passes(model, pack, stock=True), stock_moe(pack)])
    set_activations(model, activations)
    return model


class TorchRuntime:
    """Stands in for an export and its runtime: a model in torch, whose logits may be off by a factor."""

    def __init__(self, model: MoteForCausalLM, factor: float = 1.0) -> None:
        self.model, self.factor = model, factor
        self.manifest = SimpleNamespace(target="torch", model=SimpleNamespace(context_length=128, image_token_id=None))
        self.tokenizer = SimpleNamespace(encode_prompt=lambda text: [ord(letter) % 50 for letter in text])

    def generate_ids(self, ids: Sequence[int], images: None, max_new_tokens: int) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < max_new_tokens:
            *_, last = self.step_logits(ids, tokens, images)
            tokens.append(int(last.argmax()))
        return tokens

    def step_logits(self, ids: Sequence[int], tokens: Sequence[int], images: None) -> Iterator[np.ndarray]:
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 :]
        yield from self.factor * logits.numpy()


def verified(
    runtime: TorchRuntime, reference: MoteForCausalLM, rtol: float, patch: pytest.MonkeyPatch
) -> verify.Verification:
    patch.setattr(verify, "load", lambda folder: contextlib.nullcontext(runtime))
    return verify.verify_folder(Path("export"), reference, verify.default_samples(has_vision=False), rtol)


def test_only_rounded_activations_move_torchs_own_logits() -> None:
    own = {}
    ids = list(range(3, 23))
    for activations in ("float32", "int8-by-block", "int8-by-token"):
        model = int8_baseline(activations)
        assert verify.rounds_activations(model) == (activations != "float32")
        tokens, logits = verify.reference_greedy(model, ids, None, 8)
        own[activations] = verify.own_differences(model, ids, None, tokens[:-1], logits)
        assert own[activations].shape == (len(tokens),)
    assert 0 < own["float32"].max() < 5e-4
    assert min(own["int8-by-block"].max(), own["int8-by-token"].max()) > 2e-3


@pytest.mark.parametrize(
    ("name", "factor"), [("self_attn.o_proj", 1.5), ("mlp.experts.1.down_proj", 2), ("lm_head", 1.1)]
)
def test_a_wrong_scale_is_not_taken_for_rounding(name: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = int8_baseline("int8-by-token"), int8_baseline("int8-by-token")
    assert verified(TorchRuntime(model), reference, 0.05, monkeypatch).widened_steps == 0
    [layer] = [module for path, module in model.named_modules() if path.endswith(name)]
    assert isinstance(layer, QuantizedLinear)
    layer.scale.mul_(factor)
    with pytest.raises(verify.VerificationError, match="more than the tolerance"):
        verified(TorchRuntime(model), reference, 0.05, monkeypatch)


@pytest.mark.parametrize(
    ("activations", "own", "sentence"),
    [
        ("int8-by-block", 0.2, None),
        ("int8-by-block", 0.1, r"more than the tolerance of 0\.2 \(--rtol 0\.05, widened"),
        ("int8-by-block", 0.0, r"more than the tolerance of 0\.05 \(--rtol\)"),
        ("float32", 0.2, r"more than the tolerance of 0\.05 \(--rtol\)"),
    ],
)
def test_the_tolerance_is_widened_where_activations_are_rounded(
    activations: Activations, own: float, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that are all off by 0.22."""
    model = int8_baseline(activations)
    monkeypatch.setattr(verify, "own_differences", lambda *_: np.full(verify.STEPS, own, np.float32))
    if sentence is not None:
        with pytest.raises(verify.VerificationError, match=sentence):
            verified(TorchRuntime(model, 1.22), model, 0.05, monkeypatch)
        return
    found = verified(TorchRuntime(model, 1.22), model, 0.05, monkeypatch)
    assert found.widened_steps == found.greedy_tokens_compared
    with pytest.raises(verify.VerificationError, match=r"more than the tolerance of 0\.25"):  # however far torch's move
        verified(TorchRuntime(model, 1.5), model, 0.05, monkeypatch)


def export_tiny(checkpoint: Checkpoint, folder: Path, **options: str | int) -> list[ExportResult]:
    return export(checkpoint, folder / "out", ("onnx", "executorch"), pack=PackOptions(**options))


@pytest.mark.long
def test_exports_have_torchs_answers(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(layers=1, intermediate_size=32)
    options = {"linear": "int4", "embedding": "int4", "linear_group_size": 32, "quantizer": "hqq"}
    for result in export_tiny(checkpoint, tmp_path, **options):
        # Verification passed, for which an activation between two codes may have widened a step's tolerance.
        assert result.verification is not None
        manifest = json.loads((result.folder / "mote.json").read_text())
        assert manifest["quantization"]["linear"] == "int4"
        parts = {part["part"]: part for part in manifest["quantization"]["parts"]}
        vocabulary = byte_tokenizer().get_vocab_size()
        assert parts["embedding"]["bytes"] == vocabulary * (32 + 2 * 2)
        assert parts["lm_head"]["bytes"] == 16 * math.ceil(vocabulary / 16) * (32 + 2 * 2)
        assert parts["linear"]["format"] == "int4"


def test_xnnpack_has_what_it_is_quick_at(tmp_path: Path) -> None:
    """The vision tower's attention, and nothing of a decoder whose linear layers are mote's."""
    checkpoint, pack = tiny_checkpoint(layers=1, intermediate_size=32), PackOptions(linear="int8")
    export(checkpoint, tmp_path / "out", ("executorch",), pack=pack, verify=False)
    program = read_program(tmp_path / "out" / "model.pte")
    names = {method: {instruction.name for instruction in instructions} for method, instructions in program.items()}
    assert "XnnpackBackend" in names["vision_encoder"]
    assert not {"aten::where.self_out", "aten::_softmax.out"} & names["vision_encoder"]
    for method in ("text_decoder", "forward"):
        assert {"mote::ternary_moe.out", "mote::quantized_matmul.out"} <= names[method]
        assert not {"XnnpackBackend", "aten::pow.Tensor_Scalar_out"} & names[method]


@pytest.mark.long
@pytest.mark.parametrize("experts", ["float32", "int8", "int4", "int3"])
def test_the_baseline_is_exported_without_a_plugin(experts: str, tmp_path: Path) -> None:
    model = moe_llava(vocab_size=byte_tokenizer().get_vocab_size())
    checkpoint = Checkpoint("baseline", model, companion_files(32))
    for result in export_tiny(checkpoint, tmp_path, full_experts=experts, linear_group_size=32):
        assert result.verification is not None
        manifest = json.loads((result.folder / "mote.json").read_text())
        assert manifest["plugin"] is None
        assert manifest["moe"]["layers"] == []
        assert result.memory.packed_codes == 9 * 64 * 96 * int(experts.removeprefix("int").removeprefix("float")) // 8
        assert result.memory.packed == (9 * 64 * 96 // 2 if experts == "int3" else result.memory.packed_codes)


@pytest.mark.long
@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("linear", ["int8", "int4"])
def test_all_kinds_of_exports_have_torchs_answers(linear: str, portable: bool, tmp_path: Path) -> None:
    pack = PackOptions(linear=linear, embedding="int8")
    # An int8 activation on the border between two codes may fall to either side, and this model is small: see docs/quantization.md.
    export(
        tiny_checkpoint(moe_layers=[1]),
        tmp_path / "out",
        ("onnx", "executorch"),
        pack=pack,
        portable=portable,
        rtol=0.05,
    )


def test_ternary_experts_have_no_format_of_full_ones(tmp_path: Path) -> None:
    with pytest.raises(MoteError, match="full_experts is 'int4', but the routed experts of 'tiny' are ternary"):
        export_tiny(tiny_checkpoint(layers=1), tmp_path, full_experts="int4")
    assert list(tmp_path.iterdir()) == []


def test_options_without_effect_are_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "model.pt"), "--linear", "int8", "--linear-group-size", "32"])
    assert "--linear-group-size is for int4 and int3" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "model.pt"), "--quantizer", "hqq"])
    assert "--quantizer is for integer weights" in capsys.readouterr().err
