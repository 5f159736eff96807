"""MoTE as a transformers model: LLaVA (vision tower, two-layer projector, decoder) whose decoder has MoTE layers."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mote_export.model.configuration import MoteConfig
from mote_export.model.layer import MoteLayer
from mote_export.model.surgery import replace_mlps


class MoteForConditionalGeneration(LlavaForConditionalGeneration):
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

    def mote_layers(self) -> list[MoteLayer]:
        """The MoTE layers in order of the decoder."""
        return [module for module in self.modules() if isinstance(module, MoteLayer)]

    @property
    def loss_function(self) -> Callable[..., Tensor]:
        """transformers' loss of this architecture plus the balancing loss of the forward pass that precedes it."""
        language_modeling_loss: Callable[..., Tensor] = super().loss_function

        def loss(*args: Any, **kwargs: Any) -> Tensor:
            return language_modeling_loss(*args, **kwargs) + self.load_balancing_loss()

        return loss

    def load_balancing_loss(self) -> Tensor | float:
        """`router_aux_loss_coef` times the mean over layers; 0 where no layer ran in training mode."""
        losses = [layer.aux_loss for layer in self.mote_layers() if layer.aux_loss is not None]
        settings = self.config.moe_settings
        if settings is None or not losses:
            return 0.0
        return settings.router_aux_loss_coef * sum(losses[1:], losses[0]) / len(losses)
