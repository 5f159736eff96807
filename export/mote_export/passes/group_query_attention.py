"""Decoder attention -> `com.microsoft::GroupQueryAttention` with rotary embedding inside (ONNX Runtime)."""

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


class GroupQueryAttention(nn.Module):
    """Projections and one GroupQueryAttention node.

    forward: hidden_states [b, s, hidden], past key and value [b, kv_heads, past, head_dim], seqlens_k int32 [b] (valid
    tokens after this step, minus 1), total_length int32, cos and sin [context, rotary_dim / 2]; returns the output [b, s, hidden]
    and the present key and value.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, output_projection(attention)
        self.head_dim: int = attention.head_dim
        self.scaling = attention_scale(attention)

    def forward(
        self,
        hidden_states: Tensor,
        past: list[Tensor],
        seqlens_k: Tensor,
        total_length: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, sequence, _ = hidden_states.shape
        key: Tensor = self.k_proj(hidden_states)
        kv_heads = key.shape[-1] // self.head_dim
        present_shape = (batch, kv_heads, past[0].shape[2] + sequence, self.head_dim)
        query: Tensor = self.q_proj(hidden_states)
        output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [query, key, self.v_proj(hidden_states), *past, seqlens_k, total_length, cos, sin],
            {
                "num_heads": query.shape[-1] // self.head_dim,
                "kv_num_heads": kv_heads,
                "do_rotary": 1,
                "rotary_interleaved": 0,
                "scale": self.scaling,
            },
            dtypes=[query.dtype] * 3,
            shapes=[query.shape, present_shape, present_shape],
            version=1,
        )
        return self.o_proj(output), present_key, present_value


def _check(module: Any) -> str | None:
    if module.head_dim % 8 != 0:  # a requirement of ONNX Runtime's kernel
        return f"its head size is {module.head_dim}, GroupQueryAttention wants a multiple of 8"
    return check_decoder_attention(module)


GROUP_QUERY_ATTENTION = ModulePass(
    name="group-query-attention",
    pattern=is_decoder_attention,
    check=_check,
    rewrite=GroupQueryAttention,
)
