"""BitNet b1.58's checkpoints, written by transformers' own classes in each of the ways that it has, are read and exported."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import companion_files, tiny_text_config
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitNetConfig, LlamaConfig, PreTrainedModel
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights, replace_with_bitnet_linear
from transformers.utils.quantization_config import BitNetQuantConfig

from mote_export.checkpoint import (
    CheckpointError,
    is_dense,
    load_any,
    load_checkpoint,
    load_model_pt,
    open_path,
    save_folder,
    save_model_pt,
)
from mote_export.checkpoint.bitnet import UnpackedSource
from mote_export.cli.export import main
from mote_export.exporter import export
from mote_export.passes import PackedTernaryLinear, PackOptions, apply_passes, pack_ternary_linear
from mote_export.passes.pack_ternary_linear import ternary_weight
from mote_export.train.source import load_source
from mote_export.weights import TensorInMemory
from mote_runtime.errors import MoteError
from mote_runtime.manifest import Manifest

LAYER = "model.layers.0.self_attn.q_proj"


def write_bitnet(
    path: Path,
    linear_class: str,
    mode: str,
    *,
    kind: type = LlamaConfig,
    packed: bool = False,
    norm: bool = False,
    **changes: Any,
) -> PreTrainedModel:
    """A folder of a random model, and the model: transformers' layers in transformers' model, saved by transformers.

    Args:
        packed: AutoBitLinear's weights are saved four to a byte, as released checkpoints have them; the model keeps floats.
    """
    torch.manual_seed(5)
    quantization = BitNetQuantConfig(linear_class=linear_class, quantization_mode=mode, use_rms_norm=norm)
    model = AutoModelForCausalLM.from_config(tiny_text_config(kind, **({"num_hidden_layers": 1} | changes)))
    masters = {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    model = replace_with_bitnet_linear(model, quantization_config=quantization)
    for name, module in model.named_modules():
        if isinstance(module, BitLinear | AutoBitLinear):
            fill(module, masters[name].detach())
        elif "norm" in name.rsplit(".", 1)[-1]:
            module.weight.data = torch.rand(module.weight.shape) + 0.5
    model.config.quantization_config = quantization.to_dict()
    model.save_pretrained(path)
    if packed:
        edit(path, lambda state: state.update({n: pack_weights(state[n].clone()) for n in codes_of(state)}))
    for name, text in companion_files(32).items():
        if name.startswith("tokenizer"):
            (path / name).write_text(text, encoding="utf-8")
    return model.eval()


def fill(module: nn.Module, master: Tensor) -> None:
    """With weights, and scales that all differ."""
    codes, scale = torch.randint(-1, 2, master.shape).float(), 0.02 + 0.02 * torch.rand(1)
    if isinstance(module, BitLinear):
        module.weight, module.weight_scale = pack_weights(codes), 1 / scale
    elif module.online_quant:
        module.weight = nn.Parameter(master)
    else:
        module.weight, module.weight_scale = nn.Parameter(codes), scale
    if module.rms_norm is not None:
        module.rms_norm.weight = nn.Parameter(torch.rand(master.shape[1]) + 0.5)


def codes_of(state: dict[str, Tensor]) -> list[str]:
    return [name.removesuffix("_scale") for name in state if name.endswith("weight_scale")]


def edit(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors", {"format": "pt"})


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    quantization = config.get("quantization_config") | changes.pop("quantization_config", {})
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization} | changes))


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """transformers compiles these layers when they run, which takes a minute and changes nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


WAYS: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "packed, dividing": (("bitlinear", "offline"), {"norm": True}),
    "packed, multiplying": (("autobitlinear", "offline"), {"packed": True}),
    "floats, multiplying": (("autobitlinear", "offline"), {}),
    "online": (("autobitlinear", "online"), {}),
    "online with norms, untied": (("autobitlinear", "online"), {"norm": True, "tie_word_embeddings": False}),
    "bitnet": (("autobitlinear", "offline"), {"kind": BitNetConfig, "packed": True, "hidden_act": "relu2"}),
}


@pytest.mark.parametrize(("arguments", "options"), WAYS.values(), ids=WAYS.keys())
def test_what_transformers_wrote_is_read_with_identical_codes_and_scales(
    arguments: tuple[str, str], options: dict[str, Any], tmp_path: Path
) -> None:
    reference = write_bitnet(tmp_path, *arguments, **options)
    assert not is_dense(tmp_path)
    model = load_any(tmp_path).model
    decoder, layers = model.get_decoder(), 0
    for name, module in reference.model.named_modules():
        if isinstance(module, BitLinear | AutoBitLinear):
            found, expected = ternary_weight(decoder.get_submodule(name)), ternary_weight(module)
            assert torch.equal(found.codes, expected.codes)
            assert torch.equal(found.scale, expected.scale)
            layers += 1
    assert layers == 7
    ids = torch.tensor([[1, 2, 3, 250]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-5)
    skeleton = open_path(tmp_path).skeleton().model
    apply_passes(skeleton.get_decoder(), [pack_ternary_linear()])
    packed = skeleton.get_decoder().layers[0].self_attn.q_proj
    assert isinstance(packed, PackedTernaryLinear)
    assert torch.equal(packed.scale, ternary_weight(reference.get_submodule(LAYER)).scale)


def test_a_bitnet_model_comes_back_from_our_own_formats(tmp_path: Path) -> None:
    write_bitnet(tmp_path / "bitnet", "bitlinear", "offline", norm=True)
    checkpoint = load_checkpoint(tmp_path / "bitnet")
    save_model_pt(tmp_path / "model.pt", checkpoint.model, checkpoint.files)
    save_folder(tmp_path / "folder", checkpoint)
    expected = checkpoint.model.state_dict()
    for again in (load_model_pt(tmp_path / "model.pt"), load_checkpoint(tmp_path / "folder")):
        assert again.model.config.bitnet_settings == checkpoint.model.config.bitnet_settings
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())


def test_layers_are_left_out_by_parts_of_their_names(tmp_path: Path) -> None:
    write_bitnet(tmp_path, "autobitlinear", "online")
    edit_config(tmp_path, quantization_config={"modules_to_not_convert": ["lm_head", "model.layers.0.mlp"]})
    layer = load_checkpoint(tmp_path).model.get_decoder().layers[0]
    assert type(layer.mlp.up_proj) is nn.Linear
    assert type(layer.self_attn.q_proj) is AutoBitLinear


def test_padded_rows_are_cut_and_a_fourth_code_is_refused() -> None:
    codes = torch.randint(-1, 2, (10, 6)).to(torch.int8)
    packed = pack_weights(codes.clone())
    source = UnpackedSource(TensorInMemory(packed), "weight", 10)
    assert (packed.shape, source.shape) == ((3, 6), (10, 6))
    assert torch.equal(source.read().to(torch.int8), codes)
    packed[0, 0] |= 3
    with pytest.raises(CheckpointError, match=r"weight is damaged: 1 of its 60 codes have the bits 11"):
        source.read()


def pad(state: dict[str, Tensor]) -> None:
    state[f"{LAYER}.weight"] = torch.cat([state[f"{LAYER}.weight"], torch.zeros(1, 64, dtype=torch.uint8)])


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another class": (
        lambda path: edit_config(path, quantization_config={"linear_class": "fastlinear"}),
        "linear_class 'fastlinear', expected bitlinear or autobitlinear",
    ),
    "another mode": (
        lambda path: edit_config(path, quantization_config={"quantization_mode": ["online"]}),
        "quantization_mode .'online'., expected offline or online",
    ),
    "online and packed": (
        lambda path: edit_config(path, quantization_config={"quantization_mode": "online"}),
        "expected offline, as bitlinear holds packed weights",
    ),
    "another key": (
        lambda path: edit_config(path, quantization_config={"group_size": 128}),
        "group_size, which mote does not follow",
    ),
    "names that are none": (
        lambda path: edit_config(path, quantization_config={"modules_to_not_convert": [1]}),
        "modules_to_not_convert is .1., expected a list of names",
    ),
    "nothing converted": (
        lambda path: edit_config(path, quantization_config={"modules_to_not_convert": ["model."]}),
        "no linear layer of LlamaModel is ternary",
    ),
    "a decoder of another type": (lambda path: edit_config(path, model_type="gpt2"), "BitNet model of type 'gpt2'"),
    "quantized otherwise as well": (
        lambda path: edit_config(path, text_config={"quantization_config": {"quant_method": "awq"}}),
        "quantization_config, which mote does not follow",
    ),
    "a shape": (lambda path: edit(path, pad), r"has shape \[17, 64\], a packed matrix of \[64, 64\] has \[16, 64\]"),
    "a float in place of bytes": (
        lambda path: edit(path, lambda state: state.update({f"{LAYER}.weight": torch.zeros(64, 64)})),
        "is torch.float32, but its quantization_config says linear_class 'bitlinear'",
    ),
    "bytes in place of a float": (
        lambda path: edit(path, lambda state: state.update({"model.norm.weight": torch.ones(64, dtype=torch.uint8)})),
        "norm.weight is U8, expected a dense float32, float16 or bfloat16",
    ),
    "no scale": (
        lambda path: edit(path, lambda state: state.pop(f"{LAYER}.weight_scale")),
        "lacks tensor .*weight_scale",
    ),
    "a ternary output layer": (
        lambda path: edit(path, lambda state: state.update({"lm_head.weight_scale": torch.ones(1)})),
        "has a ternary output layer",
    ),
    "two embeddings": (
        lambda path: edit(path, lambda state: state.update({"lm_head.weight": torch.zeros(262, 64)})),
        "lm_head.weight with other values than the embedding",
    ),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "lacks tokenizer.json"),
}


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed")
    write_bitnet(path, "bitlinear", "offline")
    return path


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_said_in_one_sentence(
    damage: Callable[[Path], Any], message: str, packed_folder: Path, tmp_path: Path
) -> None:
    for file in packed_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message) as refused:
        open_path(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_equal_output_layer_is_no_contradiction(packed_folder: Path, tmp_path: Path) -> None:
    for file in packed_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit(tmp_path, lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))
    model = load_checkpoint(tmp_path).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_damaged_code_is_found_when_it_is_read(packed_folder: Path, tmp_path: Path) -> None:
    for file in packed_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit(tmp_path, lambda state: state[f"{LAYER}.weight"].fill_(255))
    with pytest.raises(MoteError, match=r"q_proj.weight is damaged: 4096 of its 4096 codes have the bits 11"):
        load_checkpoint(tmp_path)


def test_the_old_code_that_microsofts_folder_names_is_not_run(tmp_path: Path) -> None:
    write_bitnet(tmp_path, "autobitlinear", "online", kind=BitNetConfig)
    edit_config(tmp_path, auto_map={"AutoConfig": "configuration_bitnet.BitNetConfig"})
    (tmp_path / "configuration_bitnet.py").write_text("raise SystemExit('this was run')")
    assert load_checkpoint(tmp_path).model.config.text_config.model_type == "bitnet"


def test_there_is_nothing_to_train_in_stage_mote(packed_folder: Path) -> None:
    with pytest.raises(MoteError, match="is a BitNet model without experts"):
        load_source(packed_folder, "mote")


def test_experts_in_full_precision_are_not_asked_of_a_model_without_experts(
    packed_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(MoteError, match="has no experts: leave it out"):
        export(packed_folder, tmp_path / "out", ["onnx"], pack=PackOptions(full_experts="int8"))
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "options"),
    [WAYS["packed, dividing"], WAYS["bitnet"], WAYS["online"]],
    ids=["llama", "bitnet", "online"],
)
@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_bitnet_models_verify_in_both_runtimes(
    arguments: tuple[str, str], options: dict[str, Any], target: str, tmp_path: Path
) -> None:
    write_bitnet(tmp_path / "bitnet", *arguments, **options)
    result = export(tmp_path / "bitnet", tmp_path / "out", [target])[0]
    assert result.verification is not None
    assert result.verification.greedy_tokens_compared > 0
    assert not result.memory.has_experts
    assert result.memory.packed_bits < 3
    assert Manifest.read(tmp_path / "out").moe.layers == ()


def test_weights_that_are_nearly_ternary_are_exported_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bitnet(tmp_path / "bitnet", "autobitlinear", "offline")
    edit(tmp_path / "bitnet", lambda state: state[f"{LAYER}.weight"][0, :3].fill_(0.9))
    options = [str(tmp_path / "bitnet"), "-o", str(tmp_path / "out"), "--target", "onnx", "--no-verify"]
    assert main(options) == 1
    assert "q_proj: 3 of its 4096 weights are not -1, 0 or 1 times one number" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*options, "--ternarize"]) == 0
    assert "Some were not ternary, and rounded by 0." in capsys.readouterr().out.replace("\n", " ")
