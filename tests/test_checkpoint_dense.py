"""Dense folders of transformers: what mote up-cycles, trains and compares with. Files are hostile until checked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import dense_llava, tiny_text_config, write_dense
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    T5Config,
)

from mote_export.checkpoint import CheckpointError, DenseCheckpoint, is_dense, load_any, load_checkpoint, load_dense

EMBEDDING = "model.embed_tokens.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Llama in several shards."""
    path = tmp_path_factory.mktemp("dense") / "llama"
    write_dense(
        path, AutoModelForCausalLM.from_config(tiny_text_config(LlamaConfig, tie_word_embeddings=False)), "50KB"
    )
    return path


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """To be damaged."""
    return Path(shutil.copytree(good, tmp_path / "base"))


def same(loaded: DenseCheckpoint, model: torch.nn.Module) -> None:
    torch.testing.assert_close(loaded.model.state_dict(), model.state_dict(), atol=0, rtol=0)
    assert not loaded.model.training
    assert loaded.files["tokenizer.json"]


@pytest.mark.parametrize("kind", [Qwen2Config, LlamaConfig, MistralConfig])
@pytest.mark.parametrize("is_tied", [True, False])
def test_text_models(kind: type[PretrainedConfig], is_tied: bool, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(tiny_text_config(kind, tie_word_embeddings=is_tied))
    write_dense(tmp_path, model)
    assert is_dense(tmp_path)
    loaded = load_any(tmp_path)
    assert isinstance(loaded, DenseCheckpoint)
    assert type(loaded.model) is type(model)
    assert not loaded.has_vision
    assert (loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight) == is_tied
    same(loaded, model)


def test_llava_with_the_names_of_old_and_new_releases(tmp_path: Path) -> None:
    model = dense_llava()
    for is_new in (True, False):
        path = tmp_path / str(is_new)
        write_dense(path, model)
        if is_new:  # transformers writes the old ones
            save_file(
                {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"},
                path / "model.safetensors",
            )
        names = load_file(path / "model.safetensors").keys()
        assert ("model.language_model.layers.0.mlp.gate_proj.weight" in names) == is_new
        assert ("language_model.model.layers.0.mlp.gate_proj.weight" in names) != is_new
        loaded = load_dense(path)
        assert isinstance(loaded.model, LlavaForConditionalGeneration)
        assert loaded.has_vision
        same(loaded, model)


def test_shards_and_bfloat16(good: Path, tmp_path: Path) -> None:
    assert len(list(good.glob("*.safetensors"))) > 2
    model = load_dense(good).model
    write_dense(tmp_path, model.bfloat16())
    loaded = load_dense(tmp_path)
    assert loaded.model.dtype == torch.float32
    same(loaded, model.float())


def test_names_without_the_models_prefix(good: Path, tmp_path: Path) -> None:
    """As `save_pretrained` of the decoder alone writes them."""
    model = AutoModelForCausalLM.from_config(tiny_text_config(Qwen2Config))
    write_dense(tmp_path, model.model)
    same(load_dense(tmp_path), model)


def test_a_tied_output_layer_may_be_stored_with_the_same_values(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(tiny_text_config(Qwen2Config))
    write_dense(tmp_path, model)
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"lm_head.weight": state[EMBEDDING].clone()}, tmp_path / "model.safetensors")
    same(load_dense(tmp_path), model)
    save_file(state | {"lm_head.weight": state[EMBEDDING] + 1}, tmp_path / "model.safetensors")
    refuse(tmp_path, "which one is meant")


def test_what_transformers_computes_is_not_read(folder: Path) -> None:
    edit(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(8.0)})
    load_dense(folder)


def edit(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Makes one file of the shards, with tensors replaced, added or (None) left out."""
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    state = {name: tensor for name, tensor in (state | changes).items() if tensor is not None}
    save_file(state, folder / "model.safetensors")


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refuse(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_any(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({GATE: None}, f"lacks tensor {GATE}"),
        ({"lm_head.weight": None}, r"lacks tensor lm_head\.weight"),
        ({"stray": torch.zeros(1)}, "unexpected tensor stray"),
        ({GATE: torch.zeros(160, 65)}, r"shape \[160, 65\], the configuration wants \[160, 64\]"),
        ({GATE: torch.zeros(160, 64, dtype=torch.int8)}, f"{GATE} is I8, expected a dense float32"),
        ({GATE: torch.zeros(160, 64, dtype=torch.float64)}, "is F64, expected"),
        ({GATE: torch.full((160, 64), float("nan"))}, "NaN or infinity"),
        ({"layers.0.mlp.gate_proj.weight": torch.zeros(160, 64)}, "unexpected tensor"),
    ],
)
def test_bad_tensors(folder: Path, changes: dict[str, torch.Tensor | None], message: str) -> None:
    edit(folder, changes)
    refuse(folder, message)


def test_a_tensor_under_an_old_and_a_new_name(tmp_path: Path) -> None:
    model = dense_llava()
    write_dense(tmp_path, model)
    name = "model.language_model.norm.weight"
    edit(tmp_path, {name: model.state_dict()[name]})
    refuse(tmp_path, f"holds {name} twice")


def test_damaged_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    shards = sorted(folder.glob("*.safetensors"))
    original = index.read_text()
    edit_json(index, lambda content: content["weight_map"].update(ghost=shards[0].name))
    refuse(folder, "names ghost in .*, which does not hold it")
    edit_json(index, lambda content: content["weight_map"].update(ghost="../outside.safetensors"))
    refuse(folder, "names a file outside of its folder")
    edit_json(index, lambda content: content["weight_map"].update(ghost=7))
    refuse(folder, "names a file outside of its folder")
    edit_json(index, lambda content: content.update(weight_map=[]))
    refuse(folder, "has no weight_map")
    index.write_text(original)
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[:-5])
    refuse(folder, f"{shards[1].name} cannot be read as safetensors")
    shards[1].unlink()
    refuse(folder, f"{shards[1].name} cannot be read as safetensors, it is missing or damaged")
    shards[1].write_bytes(shards[0].read_bytes())
    refuse(folder, f"is in {shards[0].name} and {shards[1].name}")


def test_pickled_weights_are_not_read(folder: Path) -> None:
    edit(folder, {})
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuse(folder, "neither model.safetensors nor .* pickled files are not read")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no-such"}, "type 'no-such', which this version of transformers does not know"),
        ({"model_type": None}, "type None"),
        ({"model_type": "t5"}, "expected a causal language model or a LLaVA model"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected 1 to 1024"),
        ({"hidden_size": "64"}, "cannot be used: hidden_size of llama is '64'"),
        ({"hidden_size": 0}, "hidden_size of llama is 0"),
        ({"num_attention_heads": None}, "num_attention_heads of llama is None"),
        ({"intermediate_size": -160}, "no model can be built from"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, "config.auto_map, which mote does not follow"),
        ({"quantization_config": {"quant_method": "gptq"}}, "config.quantization_config"),
    ],
)
def test_bad_configurations(folder: Path, changes: dict[str, Any], message: str) -> None:
    if changes.get("model_type") == "t5":
        changes = T5Config().to_dict()
    edit_json(folder / "config.json", lambda content: content.update(changes))
    refuse(folder, message)


def test_code_and_quantization_in_a_part_of_a_model(tmp_path: Path) -> None:
    write_dense(tmp_path, dense_llava())
    edit_json(tmp_path / "config.json", lambda content: content["text_config"].update(auto_map={"AutoModel": "x.Y"}))
    refuse(tmp_path, r"config\.text_config\.auto_map")


def test_attention_kernels_named_by_a_folder_are_not_fetched(folder: Path) -> None:
    edit_json(folder / "config.json", lambda content: content.update(attn_implementation="somebody/kernel"))
    assert load_dense(folder).model.config._attn_implementation == "sdpa"


def test_a_huge_configuration_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(65 << 20)
    refuse(folder, "more than 64 MiB")


def test_files_that_are_missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    refuse(folder, r"lacks tokenizer\.json: .*save_pretrained")
    (folder / "config.json").unlink()
    refuse(folder, "is not a checkpoint that mote reads")
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_dense(folder / "config.json")


def test_the_two_readers_leave_each_others_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="make it one with mote-upcycle"):
        load_checkpoint(folder)
    edit_json(folder / "config.json", lambda content: content.update(model_type="mote"))
    with pytest.raises(CheckpointError, match="is a MoTE model already"):
        load_dense(folder)


def test_other_language_models_load_too(tmp_path: Path) -> None:
    """Gated MLPs are asked for by up-cycling only."""
    config = BertConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=262,
        is_decoder=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    write_dense(tmp_path, model)
    same(load_dense(tmp_path), model)
