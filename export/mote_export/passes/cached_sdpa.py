"""Decoder attention -> KV cache in buffers with `llama::update_cache` and `llama::custom_sdpa` (ExecuTorch)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mote_export.passes.attention import (
    attention_scale,
    check_decoder_attention,
    is_decoder_attention,
    output_projection,
)
from mote_export.passes.base import ModulePass
from mote_export.passes.pack_linear import can_concatenate, concatenate_packed
from mote_export.passes.quantize_linear import QuantizedLinear, concatenate_quantized


class CachedSdpa(nn.Module):
    """Attention over a cache of fixed length that it holds itself.

    Query, key and value come from one linear layer unless they are ternary, and query and key heads are rotated together: fewer
    operators to run.

    forward: hidden_states [1, s, hidden], start (position of the first token, a symbolic integer), cos and sin [s, rotary_dim / 2]
    of these positions; returns [1, s, hidden]. Buffers key_cache and value_cache: float32 [1, context, kv_heads, head_dim].
    """

    key_cache: Tensor
    value_cache: Tensor

    def __init__(self, attention: Any, context_length: int) -> None:
        super().__init__()
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv_proj = one_layer(projections)
        self.o_proj = output_projection(attention)
        self.head_dim: int = attention.head_dim
        self.scaling = attention_scale(attention)
        query_heads, kv_heads, _ = (projection.out_features // self.head_dim for projection in projections)
        self.heads = (query_heads, kv_heads, kv_heads)
        shape = (1, context_length, kv_heads, self.head_dim)
        self.register_buffer("key_cache", torch.zeros(shape), persistent=False)
        self.register_buffer("value_cache", torch.zeros(shape), persistent=False)

    def forward(self, hidden_states: Tensor, start: int, cos: Tensor, sin: Tensor) -> Tensor:
        length = hidden_states.shape[1]
        query_heads, key_heads, value_heads = self.heads
        heads = self.qkv_proj(hidden_states).view(1, length, -1, self.head_dim)
        to_rotate, value = heads.split([query_heads + key_heads, value_heads], dim=2)
        query, key = rotate(to_rotate, cos, sin).split([query_heads, key_heads], dim=2)
        torch.ops.llama.update_cache(key, self.key_cache, start)
        torch.ops.llama.update_cache(value, self.value_cache, start)
        output = torch.ops.llama.custom_sdpa(
            query, self.key_cache, self.value_cache, start, None, 0.0, True, self.scaling
        )
        result: Tensor = self.o_proj(output.view(1, length, -1))
        return result


class SideBySide(nn.Module):
    """Linear layers of one input, whose outputs follow one another: ternary ones have a scale each and stay apart."""

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


def one_layer(linears: Sequence[Any]) -> nn.Module:
    """Linear layers of one input as one module, whose outputs are theirs, one after another."""
    if all(type(linear) is nn.Linear for linear in linears):
        return concatenate(linears)
    if all(isinstance(linear, QuantizedLinear) for linear in linears):
        return concatenate_quantized(linears)
    if can_concatenate(linears):
        return concatenate_packed(linears)
    return SideBySide(linears)


def concatenate(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One linear layer whose outputs are those of `linears`, one after another."""
    has_bias = linears[0].bias is not None
    result = nn.Linear(linears[0].in_features, sum(linear.out_features for linear in linears), bias=has_bias)
    with torch.no_grad():
        result.weight.copy_(torch.cat([linear.weight for linear in linears]))
        if has_bias:
            result.bias.copy_(torch.cat([linear.bias for linear in linears]))
    return result


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [1, s, heads, head_dim] (halves, not interleaved) by cos and sin [s, rotary_dim / 2].

    What a head has beyond the rotary dimension stays as it is.
    """
    cos, sin = cos[None, :, None], sin[None, :, None]
    half = cos.shape[-1]
    unrotated = x.shape[-1] - 2 * half
    first, second, *rest = x.split([half, half, unrotated] if unrotated else [half, half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, *rest], dim=-1)


def cached_sdpa(context_length: int) -> ModulePass:
    """The pass for a cache of `context_length` positions."""
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers torch.ops.llama

    return ModulePass(
        name="cached-sdpa",
        pattern=is_decoder_attention,
        check=check_decoder_attention,
        rewrite=lambda module: CachedSdpa(module, context_length),
    )
