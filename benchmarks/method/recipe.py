"""Lengths and step sizes of the runs, in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from mote_export.train import FitSettings

BATCH = 48  # scenes of a step
PICTURES = 128  # of a step of the vision tower


@dataclass(frozen=True)
class Recipe:
    """All that the numbers depend on, besides the code.

    Attributes:
        train_scenes, test_scenes: pictures of either split.
        questions: held out, of each task.
        vision, base, dense, moe: steps of the vision tower, of the base model, of stage II and of stage III.
        moe_rate: learning rate of stage III, for every variant alike.
        seeds: of stages II and III.
    """

    train_scenes: int = 15_000
    test_scenes: int = 3_000
    questions: int = 1_000
    vision: int = 1_000
    base: int = 2_000
    dense: int = 2_400
    moe: int = 800
    vision_rate: float = 1.5e-3
    base_rate: float = 4e-3
    dense_rate: float = 4e-3
    moe_rate: float = 3e-3
    seeds: tuple[int, ...] = (1, 2, 3)

    def shortened(self, factor: float) -> Recipe:
        """The same with fewer steps, scenes and questions, to see that it runs; its numbers are of no use."""
        names = ("train_scenes", "test_scenes", "questions", "vision", "base", "dense", "moe")
        short: dict[str, Any] = {name: max(2, round(getattr(self, name) * factor)) for name in names}
        return replace(self, **short)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def settings(steps: int, rate: float, seed: int, batch: int = BATCH, weight_decay: float = 0.0) -> FitSettings:
    """AdamW with a memory that suits short runs, in float32, as the exported operators compute."""
    return FitSettings(
        batch_size=batch,
        learning_rate=rate,
        steps=steps,
        warmup_ratio=0.05,
        weight_decay=weight_decay,
        adam_beta2=0.98,
        seed=seed,
        keep_checkpoints=1,
    )
