"""What the attention passes of all targets share: which attention they can rewrite, and its rotary tables."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from mote_export.passes.pack_linear import PackedLinear
from mote_export.passes.pack_ternary_linear import PackedTernaryLinear
from mote_export.passes.quantize_linear import Bf16Linear, QuantizedLinear

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
STATIC_ROPE_TYPES = ("default", "linear", "llama3")


def is_decoder_attention(module: nn.Module) -> bool:
    """True for causal attention with q, k, v and o projections, as in Qwen2, Llama and Mistral, stored in any way."""
    return getattr(module, "is_causal", False) and all(
        isinstance(
            getattr(module, name, None), nn.Linear | PackedLinear | PackedTernaryLinear | QuantizedLinear | Bf16Linear
        )
        for name in PROJECTIONS
    )


def check_decoder_attention(module: Any) -> str | None:
    """None, or why grouped-query attention with static rotary embedding would not compute the same."""
    if any(hasattr(module, name) for name in ("q_norm", "k_norm", "q_layernorm", "k_layernorm")):
        return "it normalises queries and keys, which is not supported"
    window = getattr(module, "sliding_window", None) or getattr(module.config, "sliding_window", None)
    if window is not None:
        return f"it attends to a sliding window of {window} tokens, only full attention is supported"
    rope = getattr(module.config, "rope_scaling", None) or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in STATIC_ROPE_TYPES:
        return f"its rotary embedding is of type {rope_type!r}, supported are {', '.join(STATIC_ROPE_TYPES)}"
    return None


def attention_head_dim(config: PretrainedConfig) -> int:
    """Size of an attention head; not every configuration states it."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def attention_scale(module: Any) -> float:
    """What the products of queries and keys are multiplied by; not every attention states it."""
    scale: float = getattr(module, "scaling", module.head_dim**-0.5)
    return scale


def output_projection(module: Any) -> nn.Module:
    """o_proj, behind the norm that BitNet's attention has in front of it."""
    norm = getattr(module, "attn_sub_norm", None)
    projection: nn.Module = module.o_proj
    return projection if norm is None else nn.Sequential(norm, projection)


def rotary_tables(rotary_embedding: nn.Module, config: PretrainedConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of positions 0..length-1, float32 [length, rotary_dim / 2], from the model's own rotary embedding.

    The rotary dimension is that of a head, or less: then the rest of a head is not rotated (StableLM).
    """
    with torch.no_grad():
        cos, sin = rotary_embedding(torch.zeros(1, 1, config.hidden_size), torch.arange(length)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
