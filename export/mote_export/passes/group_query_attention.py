"""Decoder attention -> `com.microsoft::GroupQueryAttention` with rotary embedding inside (ONNX Runtime)."""

from typing import Any

import torch
from torch import Tensor, nn

from mote_export.kv_cache import CacheScales, scales_of
from mote_export.passes.attention import (
    attention_scale,
    check_decoder_attention,
    is_decoder_attention,
    output_projection,
)
from mote_export.passes.base import ModulePass

# Of a node whose cache is in int8; the inputs between the rotary tables and the scales are absent.
QUANTIZED: dict[str, int | str] = {
    "k_quant_type": "PER_CHANNEL",
    "v_quant_type": "PER_CHANNEL",
    "kv_cache_bit_width": 8,
}
ABSENT: tuple[None, ...] = (None, None, None)  # position_ids, attention_bias, head_sink


class GroupQueryAttention(nn.Module):
    """Projections and one GroupQueryAttention node.

    forward: hidden_states [b, s, hidden], past key and value [b, kv_heads, past, head_dim], seqlens_k int32 [b] (valid
    tokens after this step, minus 1), total_length int32, cos and sin [context, rotary_dim / 2]; returns the output [b, s, hidden]
    and the present key and value. Past and present are float32, or with scales int8; buffers key_scale and value_scale are then
    float32 [1, kv_heads, 1, head_dim].
    """

    key_scale: Tensor
    value_scale: Tensor

    def __init__(self, attention: Any, scales: CacheScales | None = None) -> None:
        super().__init__()
        self.has_int8_cache = scales is not None
        if scales is not None:
            self.register_buffer("key_scale", scales.key[None, :, None].contiguous())
            self.register_buffer("value_scale", scales.value[None, :, None].contiguous())
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
        scales = (*ABSENT, self.key_scale, self.value_scale) if self.has_int8_cache else ()
        output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [query, key, self.v_proj(hidden_states), *past, seqlens_k, total_length, cos, sin, *scales],
            {
                "num_heads": query.shape[-1] // self.head_dim,
                "kv_num_heads": kv_heads,
                "do_rotary": 1,
                "rotary_interleaved": 0,
                "scale": self.scaling,
                **(QUANTIZED if self.has_int8_cache else {}),
            },
            dtypes=[query.dtype, past[0].dtype, past[1].dtype],
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
    rewrite=lambda attention: GroupQueryAttention(attention, scales_of(attention)),
)
