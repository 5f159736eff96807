"""A tiny random MoTE checkpoint of the real architecture, for tests that need a whole model but no knowledge in it."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)

from mote_export.checkpoint import Checkpoint
from mote_export.model import MoteModel, upcycle

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token; Qwen2's special tokens follow from id 256 on."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def companion_files(image_size: int) -> dict[str, str]:
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": image_size, "width": image_size},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return {
        "tokenizer.json": byte_tokenizer().to_str(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}),
        "preprocessor_config.json": json.dumps(processor),
    }


def tiny_checkpoint(
    *,
    hidden_size: int = 64,
    intermediate_size: int = 160,
    layers: int = 2,
    num_experts: int = 4,
    top_k: int = 1,
    normalize_topk: bool = False,
    moe_layers: list[int] | str = "all",
    seed: int = 0,
) -> Checkpoint:
    """A random model; `seed` decides its weights. 16 image tokens of pictures of 32 x 32."""
    text = Qwen2Config(
        hidden_size=hidden_size, intermediate_size=intermediate_size, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=byte_tokenizer().get_vocab_size(), max_position_embeddings=128, head_dim=16,
    )  # fmt: skip
    return random_checkpoint(
        "tiny",
        tiny_vision_config(),
        text,
        seed,
        num_experts=num_experts,
        top_k=top_k,
        normalize_topk=normalize_topk,
        layers=moe_layers,
    )


def tiny_vision_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip


def random_checkpoint(
    name: str, vision: SiglipVisionConfig, text: Qwen2Config, seed: int = 0, **moe: Any
) -> Checkpoint:
    """A random LLaVA-style model with tied embeddings, up-cycled with `moe`, whose experts and routing differ."""
    torch.manual_seed(seed)
    model = upcycle(LlavaForConditionalGeneration(llava_config(vision, text)), **moe)
    scatter_experts(model)
    return Checkpoint(name, model.eval(), companion_files(vision.image_size))


def llava_config(vision: SiglipVisionConfig, text: Qwen2Config) -> LlavaConfig:
    """With tied embeddings and the tokens of `byte_tokenizer`."""
    tokenizer = byte_tokenizer()
    text.bos_token_id, text.eos_token_id = None, tokenizer.token_to_id("<|im_end|>")
    text.tie_word_embeddings = True
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.token_to_id("<|image_pad|>"),
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=True,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )  # fmt: skip


def dense_llava(seed: int = 0) -> LlavaForConditionalGeneration:
    """What `tiny_checkpoint` is up-cycled from."""
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(llava_config(tiny_vision_config(), tiny_text_config(Qwen2Config)))


def write_dense(path: Path, model: PreTrainedModel, max_shard_size: str = "1GB") -> None:
    """A transformers folder of a dense model, with the files of tokenizer and image processor."""
    model.save_pretrained(path, max_shard_size=max_shard_size)
    for name, text in companion_files(32).items():
        if name.startswith("tokenizer") or hasattr(model.config, "vision_config"):
            (path / name).write_text(text, encoding="utf-8")


def tiny_text_checkpoint(config: PretrainedConfig | None = None, seed: int = 0, **moe: Any) -> Checkpoint:
    """A random model without pictures, of any decoder that transformers knows; by default a Qwen2 with tied embeddings."""
    torch.manual_seed(seed)
    model = upcycle(AutoModelForCausalLM.from_config(config or tiny_text_config(Qwen2Config)), **moe)
    scatter_experts(model)
    files = {name: text for name, text in companion_files(32).items() if name.startswith("tokenizer")}
    return Checkpoint("tiny-text", model.eval(), files)


def tiny_text_config(kind: type[PretrainedConfig], **changes: Any) -> PretrainedConfig:
    """Of a decoder with the sizes of `tiny_checkpoint`'s and its tokenizer's ids."""
    tokenizer = byte_tokenizer()
    sizes = {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 128,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }  # fmt: skip
    return kind(**(sizes | changes))


def scatter_experts(model: MoteModel) -> None:
    """Up-cycled experts are equal: makes them, and the router's choices, differ."""
    with torch.no_grad():
        for layer in model.mote_layers():
            layer.router.weight.normal_(std=0.5)
            for parameter in layer.experts.parameters():
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
