"""Training: the stages of MoTE's recipe."""

from mote_export.train.stages import Stage, set_trainable

__all__ = ["Stage", "set_trainable"]
