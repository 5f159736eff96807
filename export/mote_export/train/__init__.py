"""Training: the stages of MoTE's recipe."""

from mote_export.train.fit import fit
from mote_export.train.settings import FitSettings, TrainingError
from mote_export.train.stages import Stage, set_trainable

__all__ = ["FitSettings", "Stage", "TrainingError", "fit", "set_trainable"]
