"""The modules that become the methods of model.pte (docs/export-format.md)."""

import torch
from torch import Tensor, nn

from mote_export.decoder import ExportedDecoder, run_layers


class TextDecoder(ExportedDecoder):
    """inputs_embeds [1, S, hidden] and positions int64 [S] to the logits of the last position, [1, vocab].

    After the cached-sdpa pass: the KV cache lies in the attention modules, and is overwritten from positions[0] on.
    """

    def forward(self, inputs_embeds: Tensor, positions: Tensor) -> Tensor:
        start = positions[0].item()
        torch._check(start >= 0)
        torch._check(start < self.context_length)
        torch._check(start + inputs_embeds.shape[1] <= self.context_length)
        cos, sin = self.cos[positions], self.sin[positions]
        last = run_layers(self.decoder, inputs_embeds, lambda attention, x: attention(x, start, cos, sin))
        logits: Tensor = self.lm_head(last)
        return logits[:, 0]


class TextForward(nn.Module):
    """Token ids int64 [1, S] and positions to logits [1, vocab]: what ExecuTorch's text-only runner calls `forward`."""

    def __init__(self, embedding: nn.Module, text_decoder: TextDecoder) -> None:
        super().__init__()
        self.embedding = embedding
        self.text_decoder = text_decoder

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self.text_decoder(self.embedding(input_ids), positions)
        return logits
