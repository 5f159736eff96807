"""The decoder as both targets export it: one loop over the layers, whose attention modules a target's pass has replaced.

transformers' own forward builds masks and caches for every way of calling it; here each layer is what the pass made of it, so the
exported graph holds nothing else.
"""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import PreTrainedModel

from mote_export.model import MoteModel
from mote_export.passes.attention import rotary_tables
from mote_runtime.errors import MoteError

Attend = Callable[[nn.Module, Tensor], Tensor]
# Decoders whose forward is `run_layers` and nothing else: no scaling of embeddings or residuals, no soft-capping.
MODEL_TYPES = ("qwen2", "llama", "mistral", "stablelm", "bitnet")
LAYER_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


def check_decoder(decoder: PreTrainedModel) -> None:
    """Raises MoteError unless `decoder` is one that `run_layers` computes."""
    if decoder.config.model_type not in MODEL_TYPES:
        raise MoteError(f"the decoder is of type {decoder.config.model_type!r}, expected {', '.join(MODEL_TYPES)}.")
    for index, layer in enumerate(decoder.layers):
        parts = [name for name, part in layer.named_children() if not isinstance(part, nn.Dropout)]
        if sorted(parts) != sorted(LAYER_PARTS):
            raise MoteError(
                f"decoder layer {index} ({type(layer).__name__}) consists of {', '.join(parts)}: expected a pre-norm layer of "
                f"{', '.join(LAYER_PARTS)}."
            )


class ExportedDecoder(nn.Module):
    """What both targets hold: the decoder after their passes, the output layer, and rotary tables for the whole context.

    cos, sin: float32 [context_length, rotary_dim / 2].
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, model: MoteModel, context_length: int) -> None:
        super().__init__()
        self.decoder = model.get_decoder()
        check_decoder(self.decoder)
        self.lm_head = model.lm_head
        self.context_length = context_length
        cos, sin = rotary_tables(self.decoder.rotary_emb, self.decoder.config, context_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)


def run_layers(decoder: PreTrainedModel, hidden_states: Tensor, attend: Attend) -> Tensor:
    """Pre-norm decoder layers and the final norm.

    Args:
        hidden_states: [batch, sequence, hidden].
        attend: calls an attention module on normalised hidden states; keeps the KV cache as its target wants it.

    Returns:
        [batch, 1, hidden]: the last position, after the final norm.
    """
    for layer in decoder.layers:
        hidden_states = hidden_states + attend(layer.self_attn, layer.input_layernorm(hidden_states))
        hidden_states = hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
    last: Tensor = decoder.norm(hidden_states[:, -1:])
    return last
