"""The held-out questions that the demo model is measured with. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from questions import KINDS, ask
from scenes import make_scene, render

DEFAULT_QUESTIONS = 300 * len(KINDS)
_SEED = 40_507


@dataclass(frozen=True)
class Question:
    """One held-out question. `prompt` is the question as a user types it; `full_prompt` is what the model reads."""

    image: Image.Image
    prompt: str
    answer: str
    kind: str

    @property
    def full_prompt(self) -> str:
        from prompts import format_prompt  # which loads transformers, and most of this file's users want none

        return format_prompt(self.prompt)


def held_out_questions(count: int = DEFAULT_QUESTIONS) -> list[Question]:
    """The first `count` held-out questions, kinds in turn, each about a scene of its own from the held-out split.

    The list for a smaller count is the beginning of the list for a greater one.
    """
    found: list[Question] = []
    index = 0
    while len(found) < count:
        scene = make_scene("test", index)
        asked = ask(scene, KINDS[len(found) % len(KINDS)], np.random.default_rng((_SEED, index)))
        index += 1
        if asked is not None:
            found.append(Question(render(scene), asked.question, asked.answer, asked.kind))
    return found
