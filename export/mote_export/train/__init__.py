"""Training: the stages of MoTE's recipe."""

from mote_export.train.fit import TrainingStopped, fit
from mote_export.train.settings import FitSettings, TrainingError
from mote_export.train.stages import Stage, set_trainable

__all__ = ["FitSettings", "Stage", "TrainingError", "TrainingStopped", "fit", "set_trainable"]
