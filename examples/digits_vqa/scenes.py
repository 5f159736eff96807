"""Scenes of one to four handwritten digits: what stands where, and the picture of it.

A scene is a canvas of four places (a 2 x 2 grid). Every digit in it is one of scikit-learn's 1,797 handwritten 8 x 8
images (`load_digits`, from the UCI "Optical Recognition of Handwritten Digits" set). The images are split once, 1,400
for training and 397 held out, so that a scene of one split never shows handwriting of the other.

Everything here is a pure function of (split, index): scene 17 of the held-out split is the same scene, to the last
pixel for a given version of numpy and Pillow, in the recipe, in the tests and in the comparison of exports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Split = Literal["train", "test"]

PLACES = ("top left", "top right", "bottom left", "bottom right")
NUM_HELD_OUT = 397

CELL = 72  # pixels of one place; the canvas is two by two of them
CANVAS = 2 * CELL
MODEL_SIZE = 48  # the canvas shrinks by exactly three on its way into the model

_SEED = 20250614
_SPLIT_KEYS: dict[Split, int] = {"train": 0, "test": 1}
_COUNT_WEIGHTS = (0.10, 0.25, 0.30, 0.35)  # of scenes with one, two, three and four digits
_REPEAT = 0.3  # how often a further digit repeats one already there, so that "how many 7s" is not always 0 or 1
_HEIGHT = (46.0, 60.0)  # pixels of a digit in its cell
_SHIFT = 6.0  # pixels off the middle of the cell, at most; even the largest digit stays inside
_CORNERS = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])  # (x, y), in the order of Image.Transform.QUAD
_SOURCE = 8  # pixels of a source image, each way
_MARGIN = 2  # empty pixels around the source, so that the interpolation fades out instead of cutting the ink


@dataclass(frozen=True)
class Scene:
    """What stands at each of the four places, in the order of `PLACES`; None where a place is empty."""

    split: Split
    index: int
    digits: tuple[int | None, ...]
    sources: tuple[int | None, ...]  # rows of load_digits().images

    @property
    def present(self) -> tuple[int, ...]:
        """The digits in reading order."""
        return tuple(digit for digit in self.digits if digit is not None)


@cache
def _digit_set() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return digits.images.astype(np.float32) / 16.0, digits.target


@cache
def source_images(split: Split) -> np.ndarray:
    """Rows of `load_digits()` that belong to a split, sorted; stratified by digit, and the same on every machine."""
    _, labels = _digit_set()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=NUM_HELD_OUT, stratify=labels, random_state=_SEED % 2**32
    )
    rows: np.ndarray = np.sort(train if split == "train" else test)
    return rows


@cache
def _sources_by_digit(split: Split) -> tuple[np.ndarray, ...]:
    _, labels = _digit_set()
    rows = source_images(split)
    return tuple(rows[labels[rows] == digit] for digit in range(10))


def make_scene(split: Split, index: int) -> Scene:
    """Draw scene number `index` of a split."""
    rng = np.random.default_rng((_SEED, _SPLIT_KEYS[split], index, 0))
    count = 1 + int(rng.choice(4, p=_COUNT_WEIGHTS))
    digits: list[int | None] = [None] * 4
    sources: list[int | None] = [None] * 4
    drawn: list[int] = []
    for place in sorted(rng.permutation(4)[:count].tolist()):
        repeat = bool(drawn) and rng.random() < _REPEAT
        digit = int(rng.choice(drawn)) if repeat else int(rng.integers(10))
        drawn.append(digit)
        digits[place] = digit
        sources[place] = int(rng.choice(_sources_by_digit(split)[digit]))
    return Scene(split, index, tuple(digits), tuple(sources))


def _draw_digit(source: int, rng: np.random.Generator, augment: bool) -> np.ndarray:
    """One digit enlarged into its cell, with jitter of place and size.

    Training digits are also turned, slanted, stretched, warped and made fainter or bolder: 1,400 images are few.

    Returns float32 [CELL, CELL], the share of ink, 0 to 1.
    """
    height = width = rng.uniform(*_HEIGHT)
    shift = rng.uniform(-_SHIFT, _SHIFT, size=2)
    turn, warp, bend = np.eye(2), np.zeros((4, 2)), 1.0
    if augment:
        angle, slant = rng.normal(0.0, math.radians(7.0)), rng.normal(0.0, 0.12)
        turn = np.array([[math.cos(angle), slant - math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        width *= rng.uniform(0.8, 1.2)
        warp = rng.normal(0.0, 0.5, size=(4, 2))
        bend = math.exp(rng.normal(0.0, 0.3))
    # Boldness bends the source, not the cell: there it would turn the interpolation's faint ringing into specks.
    pixels = np.pad(_digit_set()[0][source] ** bend, _MARGIN)
    picture = Image.fromarray(np.rint(pixels * 255.0).astype(np.uint8))
    # Image.transform wants to know where the corners of the cell lie in the source.
    to_source = np.linalg.inv(turn @ np.diag([width, height])) * _SOURCE
    corners = (_CORNERS * CELL / 2 - shift) @ to_source.T + picture.width / 2 + warp
    cell = picture.transform((CELL, CELL), Image.Transform.QUAD, corners.ravel().tolist(), Image.Resampling.BICUBIC)
    return np.asarray(cell, dtype=np.float32) / 255.0


def render(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, CANVAS x CANVAS, dark ink on light paper, both of a random tint."""
    rng = np.random.default_rng((_SEED, _SPLIT_KEYS[scene.split], scene.index, 1))
    paper = rng.uniform(205.0, 255.0, size=3)
    ink = rng.uniform(0.0, 90.0, size=3)
    share = np.zeros((CANVAS, CANVAS), dtype=np.float32)
    for place, source in enumerate(scene.sources):
        if source is not None:
            row, column = divmod(place, 2)
            area = np.s_[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            share[area] = _draw_digit(source, rng, augment=scene.split == "train")
    pixels = paper + share[..., None] * (ink - paper)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def model_pixels(picture: Image.Image) -> np.ndarray:
    """What SiglipImageProcessor's bicubic resize makes of a picture, before it rescales and normalises.

    Returns uint8 [MODEL_SIZE, MODEL_SIZE, 3]. Kept apart from the processor, which is ten times slower, for rendering
    training scenes in bulk; a test holds the two together.
    """
    return np.asarray(picture.resize((MODEL_SIZE, MODEL_SIZE), Image.Resampling.BICUBIC))
