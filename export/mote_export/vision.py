"""Vision tower and projector as both targets export them."""

from torch import Tensor, nn

from mote_export.model import MoteForConditionalGeneration
from mote_runtime.errors import MoteError


class ImageEncoder(nn.Module):
    """float32 [n, 3, height, width], normalised, to image features [n, T, hidden] of the decoder."""

    def __init__(self, model: MoteForConditionalGeneration) -> None:
        super().__init__()
        config = model.config
        if not isinstance(config.vision_feature_layer, int):
            raise MoteError(
                f"vision_feature_layer is {config.vision_feature_layer}, expected one layer index: several are not supported."
            )
        self.vision_tower = model.vision_tower
        self.projector = model.multi_modal_projector
        self.feature_layer = config.vision_feature_layer
        self.drop_class_token = config.vision_feature_select_strategy == "default"

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden_states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states[self.feature_layer]
        if self.drop_class_token:
            hidden_states = hidden_states[:, 1:]
        features: Tensor = self.projector(hidden_states)
        return features
