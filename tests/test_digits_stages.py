"""Which parameters train in which stage, seen on a model of the demo's kind."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from mote_export.model import upcycle
from mote_export.train import set_trainable


@pytest.fixture
def dense() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = SiglipVisionConfig(**sizes, image_size=8, patch_size=4, vision_use_head=False)
    text = Qwen2Config(**sizes, vocab_size=40, num_key_value_heads=1, tie_word_embeddings=True)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=39, vision_feature_layer=-1)
    )


def parts(names: list[str]) -> set[str]:
    return {part for name in names for part in ("vision_tower", "projector", "language_model") if part in name}


def test_connector_stage_trains_the_projector_only(dense: LlavaForConditionalGeneration) -> None:
    assert parts(set_trainable(dense, "connector")) == {"projector"}


def test_instruction_stage_trains_the_vision_tower_only_when_asked(dense: LlavaForConditionalGeneration) -> None:
    assert parts(set_trainable(dense, "instruction")) == {"projector", "language_model"}
    names = set_trainable(dense, "instruction", train_vision_tower=True)
    assert names == [name for name, _ in dense.named_parameters()]


def test_mote_stage_changes_routed_experts_and_routers_only(dense: LlavaForConditionalGeneration) -> None:
    mote = upcycle(dense, num_experts=2)
    names = set_trainable(mote, "mote")
    assert all(".experts." in name or ".router." in name for name in names)
    assert len(names) == 2 * 4  # two layers of gate, up, down and router
    before = {name: parameter.detach().clone() for name, parameter in mote.named_parameters()}
    mote.train()
    ids = torch.arange(30)[None]
    mote(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD([p for p in mote.parameters() if p.requires_grad], lr=1.0).step()
    changed = [name for name, parameter in mote.named_parameters() if not parameter.equal(before[name])]
    assert changed == names


def test_refusals(dense: LlavaForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="no parameter that trains in stage 'mote'"):
        set_trainable(dense, "mote")
    with pytest.raises(ValueError, match="expected one of connector, instruction, mote"):
        set_trainable(dense, "fine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="train_vision_tower"):
        set_trainable(dense, "connector", train_vision_tower=True)
