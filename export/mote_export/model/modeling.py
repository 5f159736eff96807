"""MoTE as transformers models: LLaVA, or a text model, whose decoder has MoTE layers."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from transformers import AutoModel, GenerationMixin, LlavaForConditionalGeneration, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mote_export.model.bitnet import replace_linears
from mote_export.model.configuration import MoteConfig, MoteTextConfig
from mote_export.model.layer import MoteLayer, balancing_loss_of_sums
from mote_export.model.surgery import replace_mlps

IGNORED_LABEL = -100  # that transformers' losses skip


class MoteModelMixin:
    """What a model with MoTE layers adds to transformers' `PreTrainedModel`, which the class with this mixin also is.

    Attributes:
        balances_across_processes: the balancing loss is that of the tokens of all processes of `torch.distributed`, each of which
            then has to compute it as often as the others.
    """

    balances_across_processes = False

    def mote_layers(self) -> list[MoteLayer]:
        """The MoTE layers in order of the decoder."""
        return [module for module in self.modules() if isinstance(module, MoteLayer)]  # type: ignore[attr-defined]

    @property
    def loss_function(self) -> Callable[..., Tensor]:
        """transformers' loss of this architecture plus the balancing loss of the forward pass that precedes it.

        transformers' Trainer passes `num_items_in_batch`, the labels of all batches and processes that make a step, and adds up
        what they return; the balancing loss then counts by the batch's share of these labels, so that it is a mean like the rest.
        """
        language_modeling_loss: Callable[..., Tensor] = super().loss_function  # type: ignore[misc]

        def loss(
            *args: Any, labels: Tensor | None = None, num_items_in_batch: Tensor | int | None = None, **kwargs: Any
        ) -> Tensor:
            value = language_modeling_loss(*args, labels=labels, num_items_in_batch=num_items_in_batch, **kwargs)
            if labels is None or num_items_in_batch is None:
                return value + self.load_balancing_loss()
            return value + self.load_balancing_loss(labels.ne(IGNORED_LABEL).sum() / num_items_in_batch)

        return loss

    def load_balancing_loss(self, share: Tensor | None = None) -> Tensor | float:
        """`router_aux_loss_coef` times the mean over layers; 0 where no layer ran in training mode.

        Args:
            share: of this batch in the step that several batches make, a scalar; the loss is multiplied by it. Where
                `balances_across_processes`, the losses of the processes add up to that of all their tokens; without `share`
                their mean does.
        """
        layers = [layer for layer in self.mote_layers() if layer.probability_sum is not None]
        settings = self.config.moe_settings  # type: ignore[attr-defined]
        if settings is None or not layers:
            return 0.0
        counts = torch.stack([layer.expert_counts for layer in layers])  # type: ignore[misc]
        weight: Tensor | float = 1.0 if share is None else share
        if self.balances_across_processes:
            counts, weight = _over_processes(counts, share)
        losses = [
            balancing_loss_of_sums(layer.probability_sum, count, layer.num_tokens(count))  # type: ignore[arg-type]
            for layer, count in zip(layers, counts, strict=True)
        ]
        return settings.router_aux_loss_coef * weight * sum(losses[1:], losses[0]) / len(losses)

    @contextmanager
    def _without_padding(self, attention_mask: Any, inputs: Tensor | None) -> Iterator[None]:
        """Within, the layers count the tokens that are not padding, of inputs [B, S] or [B, S, H]."""
        mask = None
        layers = self.mote_layers()
        if layers and isinstance(attention_mask, Tensor) and inputs is not None:
            mask = token_mask(attention_mask, inputs.shape[1])
            if mask is not None:
                mask = mask.expand(inputs.shape[:2])  # one may be for the whole batch
        for layer in layers:
            layer.token_mask = mask
        try:
            yield
        finally:
            for layer in layers:
                if not layer.training:
                    layer.token_mask = None


def token_mask(attention_mask: Tensor, length: int) -> Tensor | None:
    """Which of the last `length` tokens are not padding: bool [B, length].

    Args:
        attention_mask: [B, keys], nonzero for tokens; or [B, 1, length, keys], bool or what is added to the scores, where padding
            is what does not see itself. None for other shapes.
    """
    if attention_mask.dim() == 2:
        return attention_mask[:, -length:] != 0
    if attention_mask.dim() != 4:
        return None
    itself = attention_mask[:, 0].diagonal(attention_mask.shape[-1] - length, dim1=-2, dim2=-1)
    return itself if itself.dtype == torch.bool else itself > torch.finfo(itself.dtype).min / 2


def _over_processes(counts: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """Counts [layers, experts] of all processes, and the weight of this process' loss (see `load_balancing_loss`)."""
    whole = torch.ones((), device=counts.device) if share is None else share.to(counts.device)
    # float64 holds every count that there is; one reduction costs less than two.
    sums = torch.cat([counts.flatten().double(), whole.double()[None]])
    distributed.all_reduce(sums)
    # Without a share the last number is that of the processes, over which gradients are averaged.
    return sums[:-1].round().long().view_as(counts), sums[-1].float()


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

    @functools.wraps(LlavaForConditionalGeneration.forward)
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with self._without_padding(attention_mask, kwargs.get("inputs_embeds") if input_ids is None else input_ids):
            return super().forward(input_ids, pixel_values, attention_mask, *args, **kwargs)


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
        if config.bitnet_settings is not None:
            replace_linears(self.get_decoder(), config.bitnet_settings)
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
        with self._without_padding(attention_mask, inputs_embeds if input_ids is None else input_ids):
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
