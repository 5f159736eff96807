"""The modules that become vision.onnx, embedding.onnx and model.onnx (docs/export-format.md)."""

import torch
from torch import Tensor, nn

from mote_export.decoder import ExportedDecoder, run_layers
from mote_export.model import MoteForConditionalGeneration, MoteModel
from mote_export.vision import ImageEncoder


class VisionGraph(nn.Module):
    """pixel_values [1, N, 3, height, width] to image_features [N * T, hidden]."""

    def __init__(self, model: MoteForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = ImageEncoder(model)

    def forward(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.encoder(pixel_values.squeeze(0))
        return features.flatten(0, 1)


class EmbeddingGraph(nn.Module):
    """Token embeddings in which the rows of image tokens are replaced, in order, by image features [n, hidden], n >= 0."""

    def __init__(self, model: MoteForConditionalGeneration) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()
        self.image_token_id: int = model.config.image_token_id

    def forward(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        embeds = self.embedding(input_ids)
        image_token = torch.tensor(self.image_token_id)
        # ScatterND takes the n-th image token's row from the n-th feature. torch's own masked writes need to know n; ONNX's do not.
        rows = torch.onnx.ops.symbolic(
            "NonZero", [input_ids == image_token], dtype=torch.int64, shape=(2, image_features.shape[0])
        )
        merged: Tensor = torch.onnx.ops.symbolic(
            "ScatterND", [embeds, rows.transpose(0, 1), image_features], dtype=embeds.dtype, shape=embeds.shape
        )
        return merged


class TextEmbeddingGraph(nn.Module):
    """Token embeddings of a text model."""

    def __init__(self, model: MoteModel) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> Tensor:
        embeds: Tensor = self.embedding(input_ids)
        return embeds


class DecoderGraph(ExportedDecoder):
    """One step of the decoder, prefill or decode, after the group-query-attention pass."""

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, past_key_values: list[list[Tensor]]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        seqlens_k = (attention_mask.sum(dim=1) - 1).to(torch.int32)
        total_length = torch.onnx.ops.symbolic("Shape", [attention_mask], {"start": 1}, dtype=torch.int64, shape=(1,))
        total_length = total_length.to(torch.int32)
        past = iter(past_key_values)
        present = []

        def attend(attention: nn.Module, hidden_states: Tensor) -> Tensor:
            output, key, value = attention(hidden_states, next(past), seqlens_k, total_length, self.cos, self.sin)
            present.append([key, value])
            return output

        last = run_layers(self.decoder, inputs_embeds, attend)
        return self.lm_head(last), present


class TextDecoderGraph(DecoderGraph):
    """The same from token ids [1, s], for clients of text models; it cannot see pictures."""

    def __init__(self, model: MoteModel, context_length: int) -> None:
        super().__init__(model, context_length)
        self.embedding = model.get_input_embeddings()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past_key_values: list[list[Tensor]]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        return super().forward(self.embedding(input_ids), attention_mask, past_key_values)
