"""MoE-LLaVA's checkpoints: the names, routing and configuration of its own code, from safetensors and torch files."""

import contextlib
import functools
import json
import operator
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import byte_tokenizer, companion_files, scatter_experts, tiny_text_checkpoint, tiny_text_config
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    Qwen2Config,
    StableLmConfig,
)

from mote_export.checkpoint import CheckpointError, is_dense, load_any, open_moe_llava, open_path
from mote_export.exporter import export
from mote_export.manifest import image_spec
from mote_export.model import MoteModel, upcycle
from mote_export.tokens import prompt_spec
from mote_runtime.errors import MoteError

MOE_LLAVA = {
    "experts": "full",
    "shared_expert": "none",
    "num_experts": 3,
    "top_k": 2,
    "normalize_topk": True,
    "layers": [0],
}
QWEN, STABLELM = "moe_llava_qwen1_5", "moe_llava_stablelm"
TOWER = "somebody/clip-tiny"


def tiny_clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=16,
    )  # fmt: skip


def tiny_model(kind: type[PretrainedConfig] = Qwen2Config, **changes: Any) -> MoteModel:
    """What a checkpoint below is of."""
    torch.manual_seed(2)
    text = tiny_text_config(kind, **({"tie_word_embeddings": False} | changes))
    config = LlavaConfig(
        vision_config=tiny_clip(), text_config=text, image_token_index=byte_tokenizer().token_to_id("<|image_pad|>"),
        vision_feature_layer=-2, vision_feature_select_strategy="default", projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip
    model = upcycle(LlavaForConditionalGeneration(config), **MOE_LLAVA)
    scatter_experts(model)
    return model.eval()


def their_name(ours: str) -> str:
    """As MoE-LLaVA's modules are called; without the stacked experts."""
    for pattern, theirs in (
        (r"^model\.vision_tower\.", "model.image_tower.image_tower."),
        (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.image_spatial_proj.0."),
        (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.image_spatial_proj.2."),
        (r"^model\.language_model\.", "model."),
        (r"\.mlp\.router\.weight$", ".mlp.deepspeed_moe.gate.wg.weight"),
    ):
        ours = re.sub(pattern, theirs, ours)
    return ours


def their_state(model: MoteModel) -> dict[str, Tensor]:
    state = {}
    for name, tensor in model.state_dict().items():
        stacked = re.fullmatch(r"model\.language_model\.(layers\.\d+\.mlp)\.experts\.(\w+)", name)
        if stacked is None:
            state[their_name(name)] = tensor.clone()
            continue
        for expert, matrix in enumerate(tensor):
            prefix = f"model.{stacked[1]}.deepspeed_moe.experts.deepspeed_experts.{expert}"
            state[f"{prefix}.{stacked[2]}.weight"] = matrix.clone()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    if hasattr(model.config, "vision_config"):
        state["model.image_tower.image_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    return state


def their_config(model: MoteModel, model_type: str) -> dict[str, Any]:
    text = model.config.text_config.to_dict()
    flat = {name: value for name, value in text.items() if name not in ("model_type", "layer_types")}
    if model_type == STABLELM:
        flat["rope_pct"], flat["norm_eps"] = flat.pop("partial_rotary_factor"), flat.pop("layer_norm_eps")
    return {
        **flat,
        "model_type": model_type,
        "mm_image_tower": TOWER,
        "mm_video_tower": None,
        "image_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "lora": {},
        "moe": {
            "moe_enable": True,
            "moe_mode": "sparse",
            "moe_layers_idx": [0],
            "num_experts": [3],
            "top_k_experts": 2,
            "ep_size": 1,
            "use_residual": False,
            "router_aux_loss_coef": 0.02,
        },
    }


def write(path: Path, model: MoteModel, model_type: str = QWEN) -> None:
    """The checkpoint with everything in it but the tower's configuration."""
    path.mkdir(exist_ok=True)
    save_file(their_state(model), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(their_config(model, model_type)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_text(companion_files(32)[name], encoding="utf-8")


def write_tower(path: Path, model: MoteModel) -> None:
    """CLIP's own folder, with a text half of which nothing is wanted."""
    path.mkdir()
    state = {
        f"vision_model.{name}": tensor for name, tensor in model.model.vision_tower.vision_model.state_dict().items()
    }
    save_file({**state, "logit_scale": torch.ones(()), "text_model.x": torch.ones(2)}, path / "model.safetensors")
    config = {"model_type": "clip", "vision_config": tiny_clip().to_dict(), "text_config": {}}
    (path / "config.json").write_text(json.dumps(config))


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["moe"] |= changes.pop("moe", {})
    (path / "config.json").write_text(json.dumps(config | changes))


def assert_equal(found: MoteModel, expected: MoteModel) -> None:
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())


@pytest.fixture(scope="module")
def model() -> MoteModel:
    return tiny_model()


@pytest.fixture(scope="module")
def source(model: MoteModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint/ and tower/. Not to be written to."""
    path = tmp_path_factory.mktemp("moe_llava")
    write(path / "checkpoint", model)
    write_tower(path / "tower", model)
    return path


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy of both."""
    for part in ("checkpoint", "tower"):
        (tmp_path / part).mkdir()
        for file in (source / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_every_tensor_and_setting_has_its_place(source: Path, model: MoteModel) -> None:
    checkpoint = open_path(source / "checkpoint", source / "tower").load()
    assert_equal(checkpoint.model, model)
    config = checkpoint.model.config
    settings = config.moe_settings
    assert (settings.num_experts, settings.top_k, settings.normalize_topk) == (3, 2, True)
    assert (settings.experts, settings.shared_expert, settings.layers) == ("full", "none", (0,))
    assert settings.router_aux_loss_coef == 0.02
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert json.loads(checkpoint.files["preprocessor_config.json"])["size"] == {"height": 32, "width": 32}
    pixels, ids = torch.randn(1, 3, 32, 32), torch.tensor([[1, *[config.image_token_id] * 16, 2, 3]])
    with torch.no_grad():
        found, expected = (m(input_ids=ids, pixel_values=pixels).logits for m in (checkpoint.model, model))
    torch.testing.assert_close(found, expected)


def test_the_towers_own_normalisation_is_taken(folder: Path) -> None:
    (folder / "tower" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]})
    )
    image = image_spec(open_path(folder / "checkpoint", folder / "tower").skeleton())
    assert image is not None
    assert image.mean == (0.1, 0.2, 0.3)


def test_experts_are_read_one_at_a_time(source: Path, model: MoteModel) -> None:
    tensors = open_path(source / "checkpoint", source / "tower").tensors
    experts = tensors["model.language_model.layers.0.mlp.experts.up_proj"]
    assert experts.shape == (3, 160, 64)
    assert torch.equal(experts.part(2), model.mote_layers()[0].experts.up_proj[2])


@pytest.mark.parametrize("shards", [1, 2])
def test_torch_files_are_read_as_safetensors_are(shards: int, folder: Path, model: MoteModel) -> None:
    checkpoint, state = folder / "checkpoint", their_state(model)
    (checkpoint / "model.safetensors").unlink()
    names = list(state)
    if shards == 1:
        torch.save(state, checkpoint / "pytorch_model.bin")
    else:
        weight_map = {name: f"pytorch_model-{1 + (index % 2)}.bin" for index, name in enumerate(names)}
        for shard in set(weight_map.values()):
            torch.save({name: state[name] for name in names if weight_map[name] == shard}, checkpoint / shard)
        (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(open_path(checkpoint, folder / "tower").load().model, model)


def test_weights_of_the_tower_may_lie_in_its_own_folder(folder: Path, model: MoteModel) -> None:
    state = {name: tensor for name, tensor in their_state(model).items() if "image_tower" not in name}
    save_file(state, folder / "checkpoint" / "model.safetensors")
    assert_equal(open_path(folder / "checkpoint", folder / "tower").load().model, model)
    edit_config(folder / "checkpoint", mm_image_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(CheckpointError, match=r"does not hold the weights of its vision tower openai/.*--vision-tower"):
        open_path(folder / "checkpoint")


def test_a_known_tower_needs_no_folder_but_fits(folder: Path) -> None:
    edit_config(folder / "checkpoint", mm_image_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(CheckpointError, match=r"lacks tensor .*vision_tower.*layers.10."):
        open_path(folder / "checkpoint")


def test_stablelm_is_read_with_its_names(tmp_path: Path) -> None:
    stablelm = tiny_model(StableLmConfig, partial_rotary_factor=0.5, layer_norm_eps=1e-6, use_qkv_bias=True)
    write(tmp_path / "checkpoint", stablelm, STABLELM)
    write_tower(tmp_path / "tower", stablelm)
    found = open_path(tmp_path / "checkpoint", tmp_path / "tower").load().model
    assert_equal(found, stablelm)
    text = found.config.text_config
    assert (text.model_type, text.partial_rotary_factor, text.layer_norm_eps) == ("stablelm", 0.5, 1e-6)


def test_a_checkpoint_without_pictures_is_a_text_model(tmp_path: Path) -> None:
    expected = tiny_text_checkpoint(tiny_text_config(Qwen2Config, tie_word_embeddings=False), **MOE_LLAVA).model
    write(tmp_path, expected)
    edit_config(tmp_path, mm_image_tower=None)
    assert not is_dense(tmp_path)
    assert_equal(load_any(tmp_path).model, expected)


def test_one_expert_keeps_the_raw_probability(folder: Path) -> None:
    edit_config(folder / "checkpoint", moe={"top_k_experts": 1})
    settings = open_path(folder / "checkpoint", folder / "tower").config.moe_settings
    assert settings is not None
    assert not settings.normalize_topk


def test_missing_tokens_get_ids_that_the_embedding_has_to_spare(folder: Path) -> None:
    path = folder / "checkpoint" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    kept = [token for token in tokenizer["added_tokens"] if not token["content"].startswith(("<|vision", "<|image"))]
    path.write_text(json.dumps(tokenizer | {"added_tokens": kept}))
    opened = open_path(folder / "checkpoint", folder / "tower")
    assert [token["content"] for token in json.loads(opened.files["tokenizer.json"])["added_tokens"]][
        -1
    ] == "<|image_pad|>"
    assert opened.config.image_token_id == 261
    edit_config(folder / "checkpoint", vocab_size=260)
    with pytest.raises(CheckpointError, match=r"vocabulary of 260, which leaves no room for <\|vision_start\|>"):
        open_path(folder / "checkpoint", folder / "tower")


def test_it_is_asked_in_the_format_that_it_was_trained_in(source: Path) -> None:
    prompt = prompt_spec(open_path(source / "checkpoint", source / "tower").skeleton())
    assert prompt.user_prefix.startswith("A chat between a curious user and")
    assert prompt.user_prefix.endswith("the user's questions. USER: ")
    assert (prompt.image, prompt.user_suffix) == ("{image_pads}\n", " ASSISTANT:")


def drop(path: Path, name: str) -> None:
    change(path, lambda state: state.pop(name))


def change(path: Path, how: Callable[[dict[str, Tensor]], Any]) -> None:
    from safetensors.torch import load_file

    state = load_file(path / "model.safetensors")
    how(state)
    save_file(state, path / "model.safetensors")


EXPERT = "model.layers.0.mlp.deepspeed_moe.experts.deepspeed_experts."
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not enabled": (lambda path: edit_config(path, moe={"moe_enable": False}), "has no experts"),
    "residual experts": (lambda path: edit_config(path, moe={"use_residual": True}), "use_residual set"),
    "three experts a token": (
        lambda path: edit_config(path, moe={"top_k_experts": 3}),
        "top_k_experts 3, expected 1 or 2",
    ),
    "layers that are no list": (lambda path: edit_config(path, moe={"moe_layers_idx": None}), "moe_layers_idx None"),
    "a layer beyond the last": (lambda path: edit_config(path, moe={"moe_layers_idx": [7]}), "gives layer 0 0 experts"),
    "other numbers of experts": (
        lambda path: edit_config(path, moe={"moe_layers_idx": [0, 1], "num_experts": [3, 2]}),
        "layers of 2 and of 3 experts",
    ),
    "too many experts": (
        lambda path: edit_config(path, moe={"num_experts": [4]}),
        "lacks expert 3 of layers.0.mlp.experts",
    ),
    "too few experts": (lambda path: edit_config(path, moe={"num_experts": [2]}), "gives layer 0 2 experts"),
    "an expert's matrix": (
        lambda path: drop(path, f"{EXPERT}1.up_proj.weight"),
        "lacks expert 1 of layers.0.mlp.experts.up_proj",
    ),
    "an expert of another shape": (
        lambda path: change(path, lambda state: state.update({f"{EXPERT}1.up_proj.weight": torch.ones(3, 4)})),
        r"expert 1 of layers.0.mlp.experts.up_proj has shape \[3, 4\]",
    ),
    "a router": (
        lambda path: drop(path, "model.layers.0.mlp.deepspeed_moe.gate.wg.weight"),
        "lacks tensor .*router.weight",
    ),
    "a stray tensor": (
        lambda path: change(path, lambda state: state.update({"model.layers.0.mlp.coefficient.weight": torch.ones(2)})),
        "unexpected tensor .*coefficient.weight",
    ),
    "no tower but its weights": (lambda path: edit_config(path, mm_image_tower=None), "names no vision tower"),
    "a tower of another kind": (
        lambda path: change(path, lambda state: state.update({"model.image_tower.embeddings": torch.ones(2)})),
        "unexpected tensor model.image_tower.embeddings",
    ),
    "an unknown projector": (
        lambda path: edit_config(path, image_projector_type="simple_in0_out0"),
        "projector of type",
    ),
    "no projector": (
        lambda path: change(path, lambda state: [state.pop(name) for name in list(state) if "mm_projector" in name]),
        "lacks the projector's weights",
    ),
    "another feature": (
        lambda path: edit_config(path, mm_vision_select_feature="all"),
        "mm_vision_select_feature 'all'",
    ),
    "a list of features": (
        lambda path: edit_config(path, mm_vision_select_feature=["patch"]),
        "select_feature .'patch'.",
    ),
    "a layer of the tower": (lambda path: edit_config(path, mm_vision_select_layer=9), "vision_feature_layer is 9"),
    "code of its own": (lambda path: edit_config(path, auto_map={"AutoConfig": "x.Y"}), "has config.auto_map"),
    "no vocabulary": (lambda path: edit_config(path, vocab_size="many"), "vocab_size is 'many'"),
    "no fast tokenizer": (lambda path: (path / "tokenizer.json").unlink(), r"lacks tokenizer.json, .* use_fast=True"),
    "a tokenizer that is none": (
        lambda path: (path / "tokenizer.json").write_text("{}"),
        r"tokenizer.json cannot be read",
    ),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_said_in_one_sentence(damage: Callable[[Path], Any], message: str, folder: Path) -> None:
    damage(folder / "checkpoint")
    with pytest.raises(CheckpointError, match=message) as refused:
        open_moe_llava(folder / "checkpoint", folder / "tower")
    assert "\n" not in str(refused.value)


def test_a_tower_is_asked_for_where_it_is_not_known_and_refused_where_it_is_no_use(source: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"names the vision tower 'somebody/clip-tiny'.*--vision-tower"):
        open_path(source / "checkpoint")
    config = json.loads((folder / "tower" / "config.json").read_text())
    (folder / "tower" / "config.json").write_text(json.dumps(config | {"model_type": "dinov2"}))
    with pytest.raises(CheckpointError, match="type 'dinov2', expected a CLIP or SigLIP"):
        open_path(source / "checkpoint", folder / "tower")
    (folder / "checkpoint" / "config.json").write_text(json.dumps({"model_type": "mote"}))
    with pytest.raises(CheckpointError, match="holds its vision tower itself: leave --vision-tower out"):
        open_path(folder / "checkpoint", folder / "tower")


JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 2.5, 1e308, 10**12, "x", "", [], [1], [None], ["a"], {}, {"a": 1}, [[1]], {"rope_type": "yarn"},
)  # fmt: skip


def keys(value: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return []
    return [(*before, name) for name in value] + [key for name in value for key in keys(value[name], (*before, name))]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(200))
def test_a_configuration_with_junk_in_it_is_opened_or_refused(seed: int, folder: Path) -> None:
    choose = random.Random(seed)
    path = folder / choose.choice(("checkpoint", "tower")) / "config.json"
    config = json.loads(path.read_text())
    for _ in range(choose.choice((1, 1, 2))):
        *outer, name = choose.choice(keys(config))
        functools.reduce(operator.getitem, outer, config)[name] = choose.choice(JUNK)
    path.write_text(json.dumps(config))
    with contextlib.suppress(MoteError):
        open_path(folder / "checkpoint", folder / "tower").skeleton()


@pytest.mark.long
@pytest.mark.parametrize("target", ["onnx", "executorch"])
@pytest.mark.parametrize("kind", [QWEN, STABLELM])
def test_it_verifies_in_both_runtimes(kind: str, target: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_position_embeddings": 512}  # the prompt has a token for each byte
    if kind == STABLELM:
        changes |= {"partial_rotary_factor": 0.5, "use_qkv_bias": True, "head_dim": 32, "num_attention_heads": 2}
    checkpoint = tiny_model(StableLmConfig if kind == STABLELM else Qwen2Config, **changes)
    write(tmp_path / "checkpoint", checkpoint, kind)
    write_tower(tmp_path / "tower", checkpoint)
    result = export(open_path(tmp_path / "checkpoint", tmp_path / "tower").load(), tmp_path / "out", [target])[0]
    assert result.verification is not None
    assert result.verification.greedy_tokens_compared > 0
