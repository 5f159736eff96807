"""Decoder attention -> KV cache in buffers with `llama::update_cache` and `llama::custom_sdpa` (ExecuTorch)."""

from typing import Any

import torch
from torch import Tensor, nn

from mote_export.passes.attention import check_decoder_attention, is_decoder_attention
from mote_export.passes.base import ModulePass


class CachedSdpa(nn.Module):
    """Attention over a cache of fixed length that it holds itself.

    forward: hidden_states [1, s, hidden], start (position of the first token, a symbolic integer), cos and sin [s, head_dim / 2] of
    these positions; returns [1, s, hidden]. Buffers key_cache and value_cache: float32 [1, context, kv_heads, head_dim].
    """

    key_cache: Tensor
    value_cache: Tensor

    def __init__(self, attention: Any, context_length: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        shape = (1, context_length, attention.k_proj.out_features // self.head_dim, self.head_dim)
        self.register_buffer("key_cache", torch.zeros(shape), persistent=False)
        self.register_buffer("value_cache", torch.zeros(shape), persistent=False)

    def forward(self, hidden_states: Tensor, start: int, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        query = rotate(self.q_proj(hidden_states).view(heads), cos, sin)
        key = rotate(self.k_proj(hidden_states).view(heads), cos, sin)
        value = self.v_proj(hidden_states).view(heads)
        torch.ops.llama.update_cache(key, self.key_cache, start)
        torch.ops.llama.update_cache(value, self.value_cache, start)
        output = torch.ops.llama.custom_sdpa(
            query, self.key_cache, self.value_cache, start, None, 0.0, True, self.scaling
        )
        result: Tensor = self.o_proj(output.view(*hidden_states.shape[:2], -1))
        return result


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [1, s, heads, head_dim] (halves, not interleaved) by cos and sin [s, head_dim / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[None, :, None], sin[None, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def cached_sdpa(context_length: int) -> ModulePass:
    """The pass for a cache of `context_length` positions."""
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers torch.ops.llama

    return ModulePass(
        name="cached-sdpa",
        pattern=is_decoder_attention,
        check=check_decoder_attention,
        rewrite=lambda module: CachedSdpa(module, context_length),
    )
