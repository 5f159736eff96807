"""Checkpoints: what is read, and what is refused with one sentence. Files are hostile until checked."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_checkpoint, tiny_text_checkpoint, tiny_text_config
from transformers import AutoTokenizer, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen2TokenizerFast

from mote_export.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_folder, save_model_pt
from mote_export.model import MoteForCausalLM


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint()


@pytest.fixture
def content(checkpoint: Checkpoint, tmp_path: Path) -> dict[str, Any]:
    """What a good model.pt holds, to be damaged."""
    path = tmp_path / "good.pt"
    save_model_pt(path, checkpoint.model, checkpoint.files)
    loaded = torch.load(path, weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


def assert_same(loaded: Checkpoint, checkpoint: Checkpoint) -> None:
    torch.testing.assert_close(loaded.model.state_dict(), checkpoint.model.state_dict(), atol=0, rtol=0)
    assert loaded.files.items() >= checkpoint.files.items()  # save_pretrained adds generation_config.json
    assert not loaded.model.training


@pytest.mark.parametrize("kind", [Qwen2Config, LlamaConfig])
def test_text_only_round_trip(kind: type[PretrainedConfig], tmp_path: Path) -> None:
    checkpoint = tiny_text_checkpoint(tiny_text_config(kind, tie_word_embeddings=kind is Qwen2Config))
    save_model_pt(tmp_path / "model.pt", checkpoint.model, checkpoint.files)
    save_folder(tmp_path / "folder", checkpoint)
    assert not (tmp_path / "folder" / "processor_config.json").exists()
    for path in (tmp_path / "model.pt", tmp_path / "folder"):
        loaded = load_checkpoint(path)
        assert_same(loaded, checkpoint)
        assert isinstance(loaded.model, MoteForCausalLM)
        assert not loaded.has_vision
        assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "folder"), Qwen2TokenizerFast)


@pytest.mark.parametrize(("experts", "shared"), [("full", "none"), ("ternary", "ternary"), ("ternary", "none")])
def test_baselines_and_ablations_round_trip(experts: str, shared: str, tmp_path: Path) -> None:
    checkpoint = tiny_text_checkpoint(experts=experts, shared_expert=shared, top_k=2, normalize_topk=True)
    save_model_pt(tmp_path / "model.pt", checkpoint.model, checkpoint.files)
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert_same(loaded, checkpoint)
    assert loaded.model.config.moe_settings == checkpoint.model.config.moe_settings


def test_sizes_that_are_a_classs_own_may_be_left_out(tmp_path: Path) -> None:
    """transformers does not write them."""
    checkpoint = tiny_text_checkpoint(tiny_text_config(LlamaConfig, num_hidden_layers=1, max_position_embeddings=2048))
    save_folder(tmp_path, checkpoint)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"].pop("max_position_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(tmp_path).model.config.text_config.max_position_embeddings == 2048


def test_model_pt_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "model.pt"
    save_model_pt(path, checkpoint.model, checkpoint.files)
    loaded = load_checkpoint(path)
    assert_same(loaded, checkpoint)
    assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


def test_folder_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_folder(tmp_path, checkpoint)
    assert_same(load_checkpoint(tmp_path), checkpoint)


def test_bfloat16_loads_as_float32(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    save_model_pt(tmp_path / "model.pt", checkpoint.model.bfloat16(), checkpoint.files)
    loaded = load_checkpoint(tmp_path / "model.pt").model
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded.lm_head.weight, checkpoint.model.lm_head.weight.float(), atol=0, rtol=0)


def test_a_failed_save_leaves_the_old_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("old")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        save_model_pt(path, checkpoint.model, {"tokenizer.json": "{}"})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def damage(content: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "bad.pt"
    torch.save(content, path)
    return path


def refuse(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    refuse(tmp_path / "absent.pt", "does not exist")


@pytest.mark.parametrize("data", [b"", b"hello, this is text", b"\x80\x04N."])
def test_not_a_checkpoint(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    refuse(tmp_path / "x.pt", "not a checkpoint")


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"config": Malicious(trap)}, tmp_path / "evil.pt")
    refuse(tmp_path / "evil.pt", "perhaps code")
    assert not trap.exists()


def test_bare_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Malicious(trap)))
    refuse(tmp_path / "evil.pt", "not a checkpoint")
    assert not trap.exists()


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.999])
def test_truncated(content: dict[str, Any], tmp_path: Path, fraction: float) -> None:
    path = damage(content, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    refuse(path, "truncated or damaged")


def test_another_torch_file(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "not a MoTE checkpoint")
    torch.save([1, 2], tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "holds a list")


def test_wrong_version(content: dict[str, Any], tmp_path: Path) -> None:
    content["format_version"] = 2
    refuse(damage(content, tmp_path), "version 2, expected 'mote-checkpoint' version 1")


def test_dense_model(content: dict[str, Any], tmp_path: Path) -> None:
    content["config"]["moe"] = None
    refuse(damage(content, tmp_path), "no MoTE layer")


def test_other_model_type(content: dict[str, Any], tmp_path: Path) -> None:
    content["config"]["model_type"] = "llava"
    refuse(damage(content, tmp_path), "type 'llava', expected 'mote'")


ROUTER = "model.language_model.layers.0.mlp.router.weight"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4, 65), r"shape \[4, 65\], the configuration wants \[4, 64\]"),
        (torch.zeros(4, 64, dtype=torch.int32), "torch.int32, expected a dense float32"),
        (torch.full((4, 64), float("nan")), "NaN or infinity"),
        (torch.full((4, 64), float("inf")), "NaN or infinity"),
    ],
)
def test_bad_tensor(content: dict[str, Any], tmp_path: Path, tensor: torch.Tensor, message: str) -> None:
    content["state_dict"][ROUTER] = tensor
    refuse(damage(content, tmp_path), message)


def test_missing_and_unexpected_tensors(content: dict[str, Any], tmp_path: Path) -> None:
    router = content["state_dict"].pop(ROUTER)
    refuse(damage(content, tmp_path), f"lacks tensor {ROUTER}")
    content["state_dict"] |= {ROUTER: router, "stray": router}
    refuse(damage(content, tmp_path), "unexpected tensor stray")


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("text_config", "num_hidden_layers", 10**9, "expected 1 to 1024"),
        ("text_config", "hidden_size", -64, "expected a positive integer"),
        ("text_config", "hidden_size", "64", "expected a positive integer"),
        ("text_config", "intermediate_size", 10**7, "the configuration wants"),
        ("text_config", "model_type", "no-such-model", "configuration that cannot be used"),
        ("vision_config", "patch_size", 0, "expected a positive integer"),
        ("moe", "top_k", 9, "top_k is 9"),
        ("moe", "num_experts", 5, "the configuration wants"),
        ("text_config", "tie_word_embeddings", False, r"lacks tensor lm_head\.weight"),
    ],
)
def test_hostile_configuration(
    content: dict[str, Any], tmp_path: Path, section: str, key: str, value: object, message: str
) -> None:
    content["config"][section][key] = value
    refuse(damage(content, tmp_path), message)


@pytest.mark.parametrize("name", ["../escape", "model.py", "/etc/passwd", 7])
def test_foreign_companion_files(content: dict[str, Any], tmp_path: Path, name: object) -> None:
    content["files"][name] = "x"
    refuse(damage(content, tmp_path), "carries a file")


def test_damaged_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_folder(tmp_path, checkpoint)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refuse(tmp_path, "missing or damaged")
    (tmp_path / "config.json").write_text("{")
    refuse(tmp_path, "cannot be read as a model's configuration in JSON")


def test_an_output_layer_beside_a_tied_embedding_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    content["state_dict"]["lm_head.weight"] = torch.zeros(262, 64)
    refuse(damage(content, tmp_path), "which one is meant")


def test_untied_output_layer_round_trip(content: dict[str, Any], tmp_path: Path) -> None:
    content["config"]["text_config"]["tie_word_embeddings"] = False
    content["state_dict"]["lm_head.weight"] = torch.randn(262, 64)
    model = load_checkpoint(damage(content, tmp_path)).model
    assert torch.equal(model.lm_head.weight, content["state_dict"]["lm_head.weight"])
    assert model.lm_head.weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("layer", [99, -99, [1, 2], "last"])
def test_feature_layer_out_of_range(content: dict[str, Any], tmp_path: Path, layer: object) -> None:
    content["config"]["vision_feature_layer"] = layer
    refuse(damage(content, tmp_path), "vision_feature_layer is")


def test_attention_kernels_named_by_a_checkpoint_are_not_fetched(content: dict[str, Any], tmp_path: Path) -> None:
    """transformers would take these for kernels on a hub, which are code."""
    content["config"]["attn_implementation"] = "somebody/kernel"
    content["config"]["text_config"]["_attn_implementation"] = "somebody/kernel"
    model = load_checkpoint(damage(content, tmp_path)).model
    assert model.config._attn_implementation == "sdpa"
    assert model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("key", ["quantization_config", "auto_map"])
def test_configuration_that_mote_does_not_follow(content: dict[str, Any], tmp_path: Path, key: str) -> None:
    content["config"][key] = {}
    refuse(damage(content, tmp_path), f"config.{key}")
