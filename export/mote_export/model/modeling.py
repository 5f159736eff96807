"""MoTE as transformers models: LLaVA, or a text model, whose decoder has MoTE layers."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, LlavaForConditionalGeneration, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mote_export.model.configuration import MoteConfig, MoteTextConfig
from mote_export.model.layer import MoteLayer
from mote_export.model.surgery import replace_mlps


class MoteModelMixin:
    """What a model with MoTE layers adds to transformers' `PreTrainedModel`, which the class with this mixin also is."""

    def mote_layers(self) -> list[MoteLayer]:
        """The MoTE layers in order of the decoder."""
        return [module for module in self.modules() if isinstance(module, MoteLayer)]  # type: ignore[attr-defined]

    @property
    def loss_function(self) -> Callable[..., Tensor]:
        """transformers' loss of this architecture plus the balancing loss of the forward pass that precedes it."""
        language_modeling_loss: Callable[..., Tensor] = super().loss_function  # type: ignore[misc]

        def loss(*args: Any, **kwargs: Any) -> Tensor:
            return language_modeling_loss(*args, **kwargs) + self.load_balancing_loss()

        return loss

    def load_balancing_loss(self) -> Tensor | float:
        """`router_aux_loss_coef` times the mean over layers; 0 where no layer ran in training mode."""
        losses = [layer.aux_loss for layer in self.mote_layers() if layer.aux_loss is not None]
        settings = self.config.moe_settings  # type: ignore[attr-defined]
        if settings is None or not losses:
            return 0.0
        return settings.router_aux_loss_coef * sum(losses[1:], losses[0]) / len(losses)


class MoteForConditionalGeneration(MoteModelMixin, LlavaForConditionalGeneration):
    """A stock LLaVA model after surgery: the MLPs of `config.moe["layers"]` are `MoteLayer`s. All else is inherited.

    With labels, in training mode, `loss` includes `router_aux_loss_coef` times the mean load-balancing loss of the layers.
    """

    config: MoteConfig
    config_class = MoteConfig
    # LLaVA renames its tensors to the names of old releases in files; MoTE files hold the names of the modules.
    _checkpoint_conversion_mapping: ClassVar[dict[str, str]] = {}

    def __init__(self, config: MoteConfig) -> None:
        super().__init__(config)
        settings = config.moe_settings
        if settings is not None:
            replace_mlps(self.get_decoder(), settings)


class _TextModel(nn.Module):
    """Gives a decoder the place that it has in a LLaVA model, so that its tensors have the same names."""

    def __init__(self, config: MoteTextConfig) -> None:
        super().__init__()
        self.language_model = AutoModel.from_config(config.text_config)


class MoteForCausalLM(MoteModelMixin, PreTrainedModel, GenerationMixin):
    """A decoder of transformers after surgery, with its output layer; tensors are named as in `MoteForConditionalGeneration`."""

    config: MoteTextConfig
    config_class = MoteTextConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _tied_weights_keys: ClassVar[list[str]] = ["lm_head.weight"]

    def __init__(self, config: MoteTextConfig) -> None:
        super().__init__(config)
        self.model = _TextModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        settings = config.moe_settings
        if settings is not None:
            replace_mlps(self.get_decoder(), settings)
        self.post_init()

    def get_decoder(self) -> PreTrainedModel:
        return self.model.language_model

    def get_input_embeddings(self) -> nn.Module:
        return self.get_decoder().get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.get_decoder().set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As every causal language model of transformers; input_ids [B, S] or inputs_embeds [B, S, H], labels [B, S]."""
        outputs = self.get_decoder()(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


MoteModel = MoteForConditionalGeneration | MoteForCausalLM
