"""Dense models beside MoTE's own: what the rest of mote asks of a checkpoint, for one that has no experts."""

import torch

from mote_export.checkpoint import Checkpoint, DenseCheckpoint
from mote_export.model import MoteConfig, MoteForCausalLM, MoteForConditionalGeneration, MoteModel, MoteTextConfig


def as_described(checkpoint: Checkpoint | DenseCheckpoint) -> Checkpoint:
    """The checkpoint; of a dense one its name, files and configuration, with a MoTE model that has neither experts nor weights."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    values = checkpoint.model.config.to_dict()
    skeleton: MoteModel
    with torch.device("meta"):
        if checkpoint.has_vision:
            skeleton = MoteForConditionalGeneration(MoteConfig(**{**values, "model_type": MoteConfig.model_type}))
        else:
            skeleton = MoteForCausalLM(MoteTextConfig(text_config=values))
    skeleton.generation_config = checkpoint.model.generation_config
    return Checkpoint(checkpoint.name, skeleton, checkpoint.files)
