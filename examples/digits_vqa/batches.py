"""Training data in memory: pictures as model pixels, questions packed several to a sequence.

A sequence is a scene (16 image tokens, or a description in words) followed by as many questions about it as fit. Each
question sees the scene and itself, never another question, and is numbered as if it came right after the scene, so that
the model learns exactly the single-question prompt it is used with, for the price of reading the scene once.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Qwen2TokenizerFast

from prompts import IM_END, IMAGE_PREFIX, USER_PREFIX, USER_SUFFIX, describe_in_words
from questions import ask_some
from scenes import Scene, Split, make_scene, model_pixels, render

SEQUENCE_LENGTH = 128
IGNORE = -100  # the label that transformers' loss skips
EMPTY = 10  # the class of an empty place
_SCENE_GROUP = 0
_PADDING_GROUP = -1


def _pixels_of(index: int, split: Split) -> np.ndarray:
    return model_pixels(render(make_scene(split, index)))


def render_scenes(split: Split, count: int, processes: int) -> Tensor:
    """Pictures of scenes 0 to count - 1 as uint8 [count, 3, MODEL_SIZE, MODEL_SIZE]."""
    # Forking is safe here only because it happens before torch has started any thread.
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pixels = np.stack(pool.map(partial(_pixels_of, split=split), range(count), chunksize=256))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def normalise(pixels: Tensor) -> Tensor:
    """uint8 pixels to [-1, 1], as SiglipImageProcessor does with mean and std 0.5."""
    return pixels.float() / 127.5 - 1.0


def place_labels(scenes: list[Scene]) -> Tensor:
    """Class of every place, int64 [scenes, 4]: the digit, or EMPTY."""
    return torch.tensor([[EMPTY if digit is None else digit for digit in scene.digits] for scene in scenes])


@dataclass(frozen=True)
class Sequences:
    """Packed sequences, each tensor [scenes, SEQUENCE_LENGTH]."""

    input_ids: Tensor
    labels: Tensor
    groups: Tensor  # 0: the scene; 1, 2, ...: a question; -1: padding
    position_ids: Tensor


def pack(scenes: list[Scene], tokenizer: Qwen2TokenizerFast, seed: int, in_words: bool = False) -> Sequences:
    """Ask about each scene and pack the questions; `in_words` has the scene in words instead of image tokens."""
    rng = np.random.default_rng(seed)
    known: dict[str, list[int]] = {}

    def encode(text: str) -> list[int]:
        if text not in known:
            known[text] = tokenizer(text).input_ids
        return known[text]

    shape = (len(scenes), SEQUENCE_LENGTH)
    ids = np.full(shape, tokenizer.pad_token_id)
    labels = np.full(shape, IGNORE)
    groups = np.full(shape, _PADDING_GROUP)
    positions = np.zeros(shape, dtype=np.int64)
    for row, scene in enumerate(scenes):
        prefix = encode(f"{USER_PREFIX}{describe_in_words(scene.digits)}\n" if in_words else IMAGE_PREFIX)
        start = end = len(prefix)
        ids[row, :end], groups[row, :end], positions[row, :end] = prefix, _SCENE_GROUP, np.arange(end)
        for number, asked in enumerate(ask_some(scene, rng), start=1):
            prompt, answer = encode(asked.question + USER_SUFFIX), encode(asked.answer + IM_END)
            begin, middle, stop = end, end + len(prompt), end + len(prompt) + len(answer)
            if stop > SEQUENCE_LENGTH:
                continue
            ids[row, begin:stop], labels[row, middle:stop] = prompt + answer, answer
            groups[row, begin:stop] = number
            positions[row, begin:stop] = np.arange(start, start + stop - begin)
            end = stop
    return Sequences(*(torch.from_numpy(array) for array in (ids, labels, groups, positions)))


def attention_mask(groups: Tensor) -> Tensor:
    """Boolean [batch, 1, length, length], True where the query (row) may look at the key (column)."""
    query, key = groups[:, :, None], groups[:, None, :]
    causal = torch.ones(groups.shape[1], groups.shape[1], dtype=torch.bool).tril()
    return (causal & ((key == _SCENE_GROUP) | (key == query)))[:, None]


class Rows(Dataset[int]):
    """Hands out row numbers; the collators below turn a list of them into a batch with one gather per tensor."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> int:
        return row


@dataclass(frozen=True)
class PlaceCollator:
    """Batches for the vision tower's pretraining."""

    pixels: Tensor
    places: Tensor  # [scenes, 4]

    def __call__(self, rows: list[int]) -> dict[str, Tensor]:
        return {"pixel_values": normalise(self.pixels[rows]), "labels": self.places[rows]}


@dataclass(frozen=True)
class QuestionCollator:
    """Batches of packed questions; without `pixels` the scenes are in words."""

    sequences: Sequences
    pixels: Tensor | None = None

    def __call__(self, rows: list[int]) -> dict[str, Tensor]:
        batch = {
            "input_ids": self.sequences.input_ids[rows],
            "labels": self.sequences.labels[rows],
            "position_ids": self.sequences.position_ids[rows],
            "attention_mask": attention_mask(self.sequences.groups[rows]),
        }
        if self.pixels is not None:
            batch["pixel_values"] = normalise(self.pixels[rows])
        return batch
