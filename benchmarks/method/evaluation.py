"""Accuracy by task on held-out handwriting."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from batches import normalise

from .data import Encoder, Scenes
from .tasks import TASKS, Asked

_SEED = 40_507
_BATCH = 500


@dataclass(frozen=True)
class HeldOut:
    """A question about a scene of the held-out split."""

    scene: int
    task: str
    asked: Asked


def held_out_questions(scenes: Scenes, per_task: int) -> list[HeldOut]:
    """So many questions of every task, the same for every model; each of a task about a scene of its own."""
    rng = np.random.default_rng(_SEED)
    return [
        HeldOut(index, name, task.ask(scenes.of(index), rng))
        for name, task in TASKS.items()
        for index in range(per_task)
    ]


@torch.inference_mode()
def accuracy(
    model: LlavaForConditionalGeneration, scenes: Scenes, encode: Encoder, questions: list[HeldOut]
) -> dict[str, float]:
    """Share of exactly right answers by task, and "mean" over the tasks.

    Greedy decoding gives the right answer exactly if each of its tokens, the end included, is the likeliest one after the right
    tokens before it, so one forward pass over question and answer decides.
    """
    model.eval()
    right: dict[str, list[bool]] = defaultdict(list)
    by_length: dict[tuple[int, int], list[HeldOut]] = defaultdict(list)
    for question in questions:
        prompt, answer = encode.pair(*question.asked)
        by_length[len(prompt), len(answer)].append(question)
    for (_, length), group in by_length.items():
        for start in range(0, len(group), _BATCH):
            part = group[start : start + _BATCH]
            ids = torch.tensor([encode.prefix + encode.whole(*each.asked) for each in part])
            pixels = normalise(scenes.pixels[[each.scene for each in part]])
            logits = model(input_ids=ids, pixel_values=pixels, logits_to_keep=length + 1).logits[:, :-1]
            hits = (logits.argmax(-1) == ids[:, -length:]).all(dim=1).tolist()
            for each, hit in zip(part, hits, strict=True):
                right[each.task].append(hit)
    shares = {name: sum(right[name]) / len(right[name]) for name in TASKS}
    return {"mean": sum(shares.values()) / len(shares), **shares}
