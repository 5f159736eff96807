"""Pictures of scenes with four digits, and batches of questions about them, several to a sequence."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Qwen2TokenizerFast

from batches import IGNORE, attention_mask, normalise
from prompts import IM_END, IMAGE_PAD, USER_PREFIX, USER_SUFFIX, VISION_END, VISION_START, train_tokenizer
from scenes import MODEL_SIZE, Scene, Split, make_scene, model_pixels, render

from .tasks import TASKS, Digits

PATCH_SIZE = MODEL_SIZE // 2  # a patch is a place of the scene: four image tokens
NUM_IMAGE_TOKENS = (MODEL_SIZE // PATCH_SIZE) ** 2
PREFIX = f"{USER_PREFIX}{VISION_START}{IMAGE_PAD * NUM_IMAGE_TOKENS}{VISION_END}"
SEQUENCE_LENGTH = 96
DRAWS = 8  # questions drawn for a sequence; more than fit
_CORPUS_SCENES = 3_000
_CORPUS_SEED = 0


@dataclass(frozen=True)
class Scenes:
    """pixels: uint8 [N, 3, MODEL_SIZE, MODEL_SIZE]. digits: int64 [N, 4]."""

    pixels: Tensor
    digits: np.ndarray

    def of(self, index: int) -> Digits:
        """The digits of a scene, in reading order."""
        a, b, c, d = self.digits[index].tolist()
        return a, b, c, d


def _pixels(scene: Scene) -> np.ndarray:
    return model_pixels(render(scene))


def make_scenes(split: Split, number: int, processes: int) -> Scenes:
    """The first scenes of a split in which no place is empty. Call it before torch has started a thread, as it forks."""
    full = (scene for scene in (make_scene(split, index) for index in count()) if len(scene.present) == 4)
    scenes = list(islice(full, number))
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pixels = np.stack(pool.map(_pixels, scenes, chunksize=256))
    digits = np.array([scene.digits for scene in scenes], dtype=np.int64)
    return Scenes(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), digits)


def save_scenes(scenes: Scenes, path: Path) -> None:
    torch.save({"pixels": scenes.pixels, "digits": torch.from_numpy(scenes.digits)}, path)


@cache
def load_scenes(path: Path) -> Scenes:
    content = torch.load(path, weights_only=True)
    return Scenes(content["pixels"], content["digits"].numpy())


def make_tokenizer() -> Qwen2TokenizerFast:
    """Trained on questions and answers of every task, so that words of the tasks are single tokens."""
    rng = np.random.default_rng(_CORPUS_SEED)
    corpus: list[str] = []
    for _ in range(_CORPUS_SCENES):
        a, b, c, d = rng.integers(0, 10, size=4).tolist()
        for task in TASKS.values():
            question, answer = task.ask((a, b, c, d), rng)
            corpus += [PREFIX + question + USER_SUFFIX, answer]
    return train_tokenizer(corpus)


class Encoder:
    """Text to token ids, each text once."""

    def __init__(self, tokenizer: Qwen2TokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.padding: int = tokenizer.pad_token_id
        self.prefix = self(PREFIX)

    def __call__(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer(text).input_ids
        return self._known[text]

    def pair(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids of a question with the assistant's turn opened, and of the answer with its end."""
        return self(question + USER_SUFFIX), self(answer + IM_END)

    def whole(self, question: str, answer: str) -> list[int]:
        """Both after each other."""
        prompt, reply = self.pair(question, answer)
        return prompt + reply


class Rows(Dataset[int]):
    """Numbers 0 to length - 1. All that a row holds follows from its number, so that any run can be gone on with."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> int:
        return row


@dataclass(frozen=True)
class QuestionCollator:
    """Batches of sequences: a scene and questions about it, each of which sees the scene and itself only."""

    scenes: Scenes
    encode: Encoder
    seed: int
    shares: Mapping[str, float]

    def __call__(self, rows: list[int]) -> dict[str, Tensor]:
        packed = [self._row(row) for row in rows]
        ids, labels, groups, positions = (
            torch.tensor(part) for part in zip(*(each[1:] for each in packed), strict=True)
        )
        return {
            "input_ids": ids,
            "labels": labels,
            "position_ids": positions,
            "attention_mask": attention_mask(groups),
            "pixel_values": normalise(self.scenes.pixels[[each[0] for each in packed]]),
        }

    def _row(self, row: int) -> tuple[int, list[int], list[int], list[int], list[int]]:
        """The scene's number; token ids, labels, groups (0: the scene, 1, 2, ...: a question, -1: padding), positions."""
        rng = np.random.default_rng((self.seed, row))
        index = int(rng.integers(len(self.scenes.digits)))
        names, shares = list(self.shares), np.array(list(self.shares.values()))
        prefix = self.encode.prefix
        start = len(prefix)
        ids, labels, groups, positions = list(prefix), [IGNORE] * start, [0] * start, list(range(start))
        for number, choice in enumerate(rng.choice(len(names), size=DRAWS, p=shares / shares.sum()), start=1):
            prompt, answer = self.encode.pair(*TASKS[names[choice]].ask(self.scenes.of(index), rng))
            length = len(prompt) + len(answer)
            if len(ids) + length > SEQUENCE_LENGTH:
                break
            ids += prompt + answer
            labels += [IGNORE] * len(prompt) + answer
            groups += [number] * length
            positions += range(start, start + length)
        missing = SEQUENCE_LENGTH - len(ids)
        ids += [self.encode.padding] * missing
        return index, ids, labels + [IGNORE] * missing, groups + [-1] * missing, positions + [0] * missing


@dataclass(frozen=True)
class PlaceCollator:
    """Batches for the vision tower: pictures and their four digits."""

    scenes: Scenes

    def __call__(self, rows: list[int]) -> dict[str, Tensor]:
        chosen = [row % len(self.scenes.digits) for row in rows]
        return {
            "pixel_values": normalise(self.scenes.pixels[chosen]),
            "labels": torch.from_numpy(self.scenes.digits[chosen]),
        }
