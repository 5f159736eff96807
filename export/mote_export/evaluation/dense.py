"""Dense models beside MoTE's own, for what the rest of mote asks of a checkpoint: a MoTE model without experts."""

from pathlib import Path

from mote_export.checkpoint import Checkpoint, load_checkpoint
from mote_export.checkpoint.dense import DenseCheckpoint, is_dense, load_dense
from mote_export.checkpoint.folder import CONFIG
from mote_export.model import MoteConfig, MoteForCausalLM, MoteForConditionalGeneration, MoteModel, MoteTextConfig
from mote_export.model.upcycling import copy_dense_weights


def load_any_checkpoint(path: Path) -> Checkpoint:
    """A MoTE checkpoint, or a dense transformers folder as one whose model has no experts. Raises CheckpointError."""
    if (path / CONFIG).is_file() and is_dense(path):
        return without_experts(load_dense(path))
    return load_checkpoint(path)


def without_experts(dense: DenseCheckpoint) -> Checkpoint:
    """A checkpoint with a copy of the model, which computes the same; it can be asked, but not exported."""
    config = dense.model.config
    model: MoteModel
    if dense.has_vision:
        values = config.to_dict()
        values.pop("model_type")
        model = MoteForConditionalGeneration(MoteConfig(**values))
    else:
        model = MoteForCausalLM(MoteTextConfig(text_config=config.to_dict()))
    model = model.to(dense.model.dtype)
    copy_dense_weights(dense.model, model, init="random")  # there are no experts, random or other
    return Checkpoint(dense.name, model.eval(), dense.files)
