"""Up-cycling a folder: the same model as in memory, its first answers by the formulas, its report, and what is refused."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import companion_files, dense_llava, tiny_text_config, write_dense
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

from mote_export.checkpoint import load_checkpoint
from mote_export.checkpoint.tensor_files import StoredTensor
from mote_export.cli.upcycle import main
from mote_export.model import MoteForCausalLM, MoteForConditionalGeneration, upcycle
from mote_export.model.quantizers import fake_quantize_activations, fake_ternarize
from mote_export.passes import PackOptions, apply_passes, pack_ternary_experts
from mote_export.report import expert_memory
from mote_export.upcycle_folder import UpcycleOptions, upcycle_folder
from mote_runtime.errors import MoteError

SEED = 7


def text_model(kind: type[PretrainedConfig] = Qwen2Config, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_text_config(kind, **changes))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Qwen2; not to be written to."""
    path = tmp_path_factory.mktemp("bases") / "qwen"
    write_dense(path, text_model())
    return path


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the tensor names of old releases; not to be written to."""
    path = tmp_path_factory.mktemp("bases") / "llava"
    write_dense(path, dense_llava())
    return path


def assert_equal_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def stored(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
    return state


def saved(model: PreTrainedModel) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    if model.config.get_text_config(decoder=True).tie_word_embeddings:
        del state["lm_head.weight"]
    return state


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_experts": 3, "layers": "every-other"},
        {"layers": (1,), "init": "random"},
        {"experts": "full", "shared_expert": "none", "top_k": 2, "normalize_topk": True},
        {"experts": "full", "shared_expert": "none", "init": "random", "top_k": 2, "normalize_topk": True},
        {"shared_expert": "ternary"},
    ],
)
@pytest.mark.parametrize("base", ["qwen", "llava"])
def test_the_folder_is_the_model_in_memory_bit_for_bit(
    base: str, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(base)
    result = upcycle_folder(folder, tmp_path / "out", UpcycleOptions(seed=SEED, max_shard_bytes=200_000, **options))
    kind = LlavaForConditionalGeneration if base == "llava" else AutoModelForCausalLM
    expected = upcycle(kind.from_pretrained(folder), seed=SEED, **options)
    assert_equal_bits(stored(tmp_path / "out"), saved(expected))
    loaded = load_checkpoint(tmp_path / "out").model
    assert type(loaded) is (MoteForConditionalGeneration if base == "llava" else MoteForCausalLM)
    assert_equal_bits(dict(loaded.state_dict()), dict(expected.state_dict()))
    assert loaded.config.moe_settings == expected.config.moe_settings == result.settings
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
def test_other_decoders_are_found_by_structure(kind: type[PretrainedConfig], tmp_path: Path) -> None:
    model = text_model(kind, tie_word_embeddings=False)
    write_dense(tmp_path / "base", model)
    upcycle_folder(tmp_path / "base", tmp_path / "out", UpcycleOptions(seed=SEED))
    assert_equal_bits(stored(tmp_path / "out"), saved(upcycle(model, seed=SEED)))


def test_layers_experts_and_defaults(qwen: Path, tmp_path: Path) -> None:
    full = upcycle_folder(qwen, tmp_path / "full", UpcycleOptions(experts="full", layers="every-other")).settings
    assert (full.top_k, full.normalize_topk, full.shared_expert, full.layers) == (2, True, "none", (0,))
    mote = upcycle_folder(qwen, tmp_path / "mote").settings
    assert (mote.top_k, mote.normalize_topk, mote.shared_expert, mote.layers) == (1, False, "full", (0, 1))
    assert mote.is_mote


def test_routers_depend_on_the_seed_alone(qwen: Path, tmp_path: Path) -> None:
    name = "model.language_model.layers.1.mlp.router.weight"
    routers = []
    for number, options in enumerate(({}, {"layers": (1,)}, {"seed": 1})):
        upcycle_folder(qwen, tmp_path / str(number), UpcycleOptions(**options))
        routers.append(stored(tmp_path / str(number))[name])
    assert torch.equal(routers[0], routers[1])
    assert not torch.equal(routers[0], routers[2])
    assert routers[0].std() == pytest.approx(0.02, rel=0.2)


def test_dtypes(qwen: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(qwen).bfloat16()
    write_dense(tmp_path / "base", model)
    upcycle_folder(tmp_path / "base", tmp_path / "keep", UpcycleOptions(seed=SEED))
    assert_equal_bits(stored(tmp_path / "keep"), saved(upcycle(model, seed=SEED)))
    upcycle_folder(qwen, tmp_path / "bf16", UpcycleOptions(seed=SEED, dtype="bf16"))
    assert_equal_bits(stored(tmp_path / "bf16"), stored(tmp_path / "keep"))
    upcycle_folder(tmp_path / "base", tmp_path / "float32", UpcycleOptions(seed=SEED, dtype="float32"))
    assert {tensor.dtype for tensor in stored(tmp_path / "float32").values()} == {torch.float32}
    for name, dtype in (("keep", "bfloat16"), ("bf16", "bfloat16"), ("float32", "float32")):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["dtype"] == config["text_config"]["dtype"] == dtype


def formula(mlp: torch.nn.Module, router: Tensor, x: Tensor) -> Tensor:
    """FFN(x) + p Q(FFN)(x): all experts are the FFN, so that which one is chosen does not matter."""
    gate, up, down = (fake_ternarize(getattr(mlp, name).weight) for name in ("gate_proj", "up_proj", "down_proj"))
    xq = fake_quantize_activations(x)
    hidden = fake_quantize_activations(F.silu(F.linear(xq, gate)) * F.linear(xq, up))
    p = F.linear(x, router).softmax(dim=-1).amax(dim=-1, keepdim=True)
    return mlp(x) + p * F.linear(hidden, down)


@pytest.mark.parametrize("base", ["qwen", "llava"])
def test_the_first_forward_pass_is_the_ffn_and_its_ternary_copy(
    base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(base)
    upcycle_folder(folder, tmp_path / "out")
    mote = load_checkpoint(tmp_path / "out").model
    kind = LlavaForConditionalGeneration if base == "llava" else AutoModelForCausalLM
    dense = kind.from_pretrained(folder, attn_implementation="sdpa")
    inputs: dict[str, Tensor] = {"input_ids": torch.arange(40, 52)[None]}
    if base == "llava":
        inputs["input_ids"] = torch.tensor([[*range(40, 46), *[dense.config.image_token_id] * 16, *range(46, 50)]])
        inputs["pixel_values"] = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        found = mote(**inputs).logits
        unchanged = dense(**inputs).logits
        for layer, new in zip(dense.get_decoder().layers, mote.mote_layers(), strict=True):
            x = torch.randn(5, 64)
            torch.testing.assert_close(new(x), formula(layer.mlp, new.router.weight, x))
            layer.mlp.forward = partial(formula, _plain(layer.mlp), new.router.weight)
        expected = dense(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, unchanged, atol=1e-3), "the experts change nothing"


def _plain(mlp: torch.nn.Module) -> torch.nn.Module:
    """A module of the same weights, whose forward is the class's."""
    plain = type(mlp)(mlp.config)
    plain.load_state_dict(mlp.state_dict())
    return plain


def test_companion_files(llava: Path, qwen: Path, tmp_path: Path) -> None:
    text, pictures = tmp_path / "text", tmp_path / "pictures"
    upcycle_folder(qwen, text)
    upcycle_folder(llava, pictures)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (text / name).read_bytes() == (qwen / name).read_bytes()
    assert not (text / "processor_config.json").exists()
    assert (text / "generation_config.json").read_bytes() == (qwen / "generation_config.json").read_bytes()
    assert AutoTokenizer.from_pretrained(text)("ab").input_ids
    processor = AutoProcessor.from_pretrained(pictures)
    assert processor.image_token == "<|image_pad|>"
    model = MoteForConditionalGeneration.from_pretrained(pictures)
    assert model.generation_config.suppress_tokens is None, "the base's own generation_config.json stays"


def test_a_tokenizer_of_another_kind_and_other_files_are_carried(tmp_path: Path) -> None:
    base = tmp_path / "base"
    write_dense(base, dense_llava())
    tokenizer = companion_files(32)["tokenizer.json"].replace("<|image_pad|>", "<image>").replace("<|im_", "<|an_")
    (base / "tokenizer.json").write_text(tokenizer)
    carried = {"processor_config.json": '{"patch_size": 8}', "LICENSE": "text", "special_tokens_map.json": "{}"}
    for name, text in carried.items():
        (base / name).write_text(text)
    (base / "modeling_x.py").write_text("raise SystemExit")
    (base / "sub").mkdir()
    upcycle_folder(base, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == tokenizer
    for name, text in carried.items():
        assert (tmp_path / "out" / name).read_text() == text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json",
        "tokenizer_config.json", *carried,
    }  # fmt: skip


def test_links_as_in_a_cache_of_the_hub(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for path in qwen.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    upcycle_folder(tmp_path / "snapshot", tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    load_checkpoint(tmp_path / "out")


def test_the_report_tells_real_bytes(qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(qwen), "-o", str(out), "--num-experts", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == {path.name: path.stat().st_size for path in out.iterdir()}
    state = stored(out)
    assert report["model"] == {
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "bytes": sum(tensor.nbytes for tensor in state.values()),
    }
    in_layers = {name: tensor for name, tensor in state.items() if ".mlp." in name}
    rows = {row["name"]: row for row in report["memory"]}
    ffn = 2 * 3 * 64 * 160
    assert rows["dense, the base's FFNs"] == {"name": "dense, the base's FFNs", "formula": 2 * ffn, "bytes": 4 * ffn}
    now = rows["this checkpoint, to be trained"]
    assert (now["formula"], now["bytes"]) == (4 * 2 * ffn, sum(tensor.nbytes for tensor in in_layers.values()))
    model = load_checkpoint(out).model
    apply_passes(model, [pack_ternary_experts(PackOptions("1.6bit", "int8"))])
    assert rows["quantized, INT8 + 1.6bit"]["bytes"] == expert_memory(model).total
    assert rows["quantized, INT8 + 2bit"]["formula"] == ffn + 3 * ffn // 4


def test_the_report_of_baselines_and_ablations(qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ffn = 2 * 3 * 64 * 160
    for number, (options, expected) in enumerate(
        [
            (["--experts", "full"], {"quantized, BF16": 8 * ffn, "quantized, INT4": 2 * ffn}),
            (["--shared-expert", "none"], {"quantized, experts in 2 bits": ffn}),
            (["--shared-expert", "ternary"], {"quantized, experts in 2 bits": ffn + ffn // 4}),
        ]
    ):
        assert main([str(qwen), "-o", str(tmp_path / str(number)), *options, "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["memory"]}
        for name, formula_bytes in expected.items():
            assert (rows[name]["formula"], rows[name]["bytes"]) == (formula_bytes, None)
        assert main([str(qwen), "-o", str(tmp_path / f"table-{number}"), *options]) == 0
        shown = capsys.readouterr().out
        assert "Memory of the experts: 4" in shown
        assert "MoteForCausalLM" in shown


def test_default_output(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(qwen)]) == 0
    load_checkpoint(tmp_path / "qwen-mote")


def refuse(base: Path, message: str, tmp_path: Path, **options: Any) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MoteError, match=message) as caught:
        upcycle_folder(base, tmp_path / "deep" / "out", UpcycleOptions(**options))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


GPT2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=262, n_positions=32)
BERT = BertConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=262, is_decoder=True
)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2, r"GPT2LMHeadModel has no bias-free SiLU-gated MLP \(gate_proj, up_proj, down_proj\)"),
        (BERT, "BertLMHeadModel has no bias-free SiLU-gated MLP"),
        (tiny_text_config(LlamaConfig, mlp_bias=True), r"model\.layers\.0\.mlp has biases"),
        (
            tiny_text_config(LlamaConfig, hidden_act="gelu"),
            r"the activation of model\.layers\.0\.mlp is GELUActivation",
        ),
        (
            tiny_text_config(
                Qwen2MoeConfig, num_experts=2, moe_intermediate_size=16, shared_expert_intermediate_size=16
            ),
            "has several MLPs in a layer",
        ),
        (tiny_text_config(MixtralConfig, num_local_experts=2), "has no bias-free SiLU-gated MLP"),
        (tiny_text_config(GraniteConfig, logits_scaling=8.0), r"changes its logits by config\.logits_scaling = 8\.0"),
    ],
)
def test_models_that_cannot_be_upcycled(config: PretrainedConfig, message: str, tmp_path: Path) -> None:
    write_dense(tmp_path / "base", AutoModelForCausalLM.from_config(config))
    refuse(tmp_path / "base", message, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (0, 7)}, "names layer 7, the decoder has 2"),
        ({"layers": (1, 0)}, r"layers is \[1, 0\], expected ascending"),
        ({"layers": "some"}, "layers is 'some', expected all, every-other or indices"),
        ({"num_experts": 300}, "num_experts is 300, expected 1 to 256"),
        ({"top_k": 5}, "top_k is 5"),
        ({"experts": "half"}, "experts is 'half'"),
        ({"init": "zero"}, "init is 'zero', expected ffn, random"),
        ({"dtype": "int8"}, "dtype is 'int8', expected keep, bf16, float32"),
        ({"max_shard_bytes": 0}, "max_shard_bytes is 0"),
    ],
)
def test_bad_options(qwen: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    refuse(qwen, message, tmp_path, **options)


def copy_of(folder: Path, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    base = tmp_path / "base"
    base.mkdir()
    for path in folder.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    return base, load_file(base / "model.safetensors")


def test_not_a_number_is_found_on_the_way(qwen: Path, tmp_path: Path) -> None:
    base, state = copy_of(qwen, tmp_path)
    state["model.layers.1.mlp.down_proj.weight"][-1, -1] = float("nan")
    save_file(state, base / "model.safetensors")
    refuse(base, r"model\.layers\.1\.mlp\.down_proj\.weight contains NaN", tmp_path)


def test_bases_that_are_damaged(qwen: Path, tmp_path: Path) -> None:
    """More of them in test_checkpoint_dense.py: the checks are the same."""
    base, state = copy_of(qwen, tmp_path)
    del state["model.norm.weight"]
    save_file(state, base / "model.safetensors")
    refuse(base, r"lacks tensor model\.norm\.weight", tmp_path)
    (base / "model.safetensors").unlink()
    refuse(base, r"neither model\.safetensors nor", tmp_path)
    refuse(tmp_path / "absent", "is not a folder", tmp_path)


def test_what_could_not_be_read_again_is_not_written(llava: Path, tmp_path: Path) -> None:
    base, _ = copy_of(llava, tmp_path)
    config = json.loads((base / "config.json").read_text()) | {"vision_feature_layer": 99}
    config["text_config"].pop("max_position_embeddings")  # the class has one
    (base / "config.json").write_text(json.dumps(config))
    refuse(base, r"vision_feature_layer is 99, expected an integer from -3 to 2", tmp_path)
    (base / "config.json").write_text(json.dumps(config | {"vision_feature_layer": -1}))
    upcycle_folder(base, tmp_path / "out")
    load_checkpoint(tmp_path / "out")


def test_the_auto_classes_open_it(qwen: Path, tmp_path: Path) -> None:
    upcycle_folder(qwen, tmp_path / "out", UpcycleOptions(dtype="bf16"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert (type(model), model.dtype) == (MoteForCausalLM, torch.bfloat16)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("ab", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (1, 5)


def test_a_base_without_tokenizer(qwen: Path, tmp_path: Path) -> None:
    base, _ = copy_of(qwen, tmp_path)
    (base / "tokenizer.json").unlink()
    refuse(base, r"lacks tokenizer\.json: save the tokenizer with the model", tmp_path)


def test_a_mote_model_is_not_upcycled_again(qwen: Path, tmp_path: Path) -> None:
    upcycle_folder(qwen, tmp_path / "mote")
    refuse(tmp_path / "mote", "is a MoTE model already", tmp_path)


def test_an_output_that_is_there(qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, sentence in (("file", "is a file"), ("full", "is not empty")):
        assert main([str(qwen), "-o", str(tmp_path / name)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert sentence in captured.err
        assert captured.err.count("\n") == 1
    assert main([str(qwen), "-o", str(tmp_path / "empty")]) == 0


@pytest.mark.parametrize(
    "options",
    [["--layers", "0,"], ["--layers", "odd"], ["--max-shard-size", "2TB"], ["--max-shard-size", "0"], ["--top-k", "0"]],
)
def test_wrong_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["base", *options])
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_too_little_room(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    refuse(qwen, "would take 0.00 GB, but its disk has 0.00 GB left", tmp_path)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(OSError(28, "No space left on device"), 1, "No space left on device"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_nothing_is_left_behind(
    qwen: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    """Halfway through the weights."""
    blocks = StoredTensor.blocks
    calls = iter(range(5))

    def fail(self: StoredTensor) -> Any:
        if next(calls, None) is None:
            raise error
        return blocks(self)

    monkeypatch.setattr(StoredTensor, "blocks", fail)
    assert main([str(qwen), "-o", str(tmp_path / "deep" / "out")]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "nothing was written" in captured.err
    assert list(tmp_path.iterdir()) == []
