"""The models: a vision tower with four tokens a picture, a small Qwen2 decoder, and what up-cycling makes of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2TokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mote_export.model import MoteForConditionalGeneration, MoteModel, upcycle
from mote_export.model.surgery import find_gated_mlps
from mote_export.train import set_trainable
from prompts import IM_START, IMAGE_PAD, MAX_LENGTH
from scenes import MODEL_SIZE

from .data import NUM_IMAGE_TOKENS, PATCH_SIZE
from .variants import Variant

VOCAB_MULTIPLE = 16
HIDDEN, INTERMEDIATE, LAYERS, HEADS = 64, 64, 2, 2


class PlaceClassifier(nn.Module):
    """The vision tower with a throw-away head that reads each of its four tokens."""

    def __init__(self, vision_tower: SiglipVisionModel) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.head = nn.Linear(vision_tower.config.hidden_size, 10)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states[-1]
        logits = self.head(states)  # [batch, 4, 10]
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def make_dense(tokenizer: Qwen2TokenizerFast) -> LlavaForConditionalGeneration:
    """The dense model, with random weights."""
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=MODEL_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=-(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids(IM_START),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_PAD),
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def make_variant(dense: LlavaForConditionalGeneration, variant: Variant) -> MoteModel | LlavaForConditionalGeneration:
    """What stage III starts from; the same parameters train in all: those of the feed-forward layers, but a shared expert's.

    The dense model's FFNs go on training, since there are no others that could take up the tokens of the stage.
    """
    if variant.moe is not None:
        mote = upcycle(dense, **variant.moe)
        set_trainable(mote, "mote")
        return mote
    mlps = find_gated_mlps(dense.get_decoder())
    for parameter in dense.parameters():
        parameter.requires_grad_(False)
    for name in mlps:
        dense.get_decoder().get_submodule(name).requires_grad_(True)
    return dense


def ternarized(full: MoteForConditionalGeneration) -> MoteForConditionalGeneration:
    """The model with its full routed experts as ternary ones, without any training."""
    config = type(full.config)(**{**full.config.to_dict(), "moe": {**full.config.moe, "experts": "ternary"}})  # type: ignore[dict-item]
    mote = MoteForConditionalGeneration(config)
    mote.load_state_dict(full.state_dict())
    return mote.to(full.dtype)


def save_weights(model: nn.Module, path: Path) -> None:
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, path)


def load_weights(model: nn.Module, path: Path) -> None:
    model.load_state_dict(torch.load(path, weights_only=True))
