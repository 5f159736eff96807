"""Questions about a scene, in English, with the answer that is true of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scenes import PLACES, Scene

DRAWS = 14  # questions drawn for a scene; more than fit in a sequence
# How often each kind is asked in training, relative to the others. Kinds that look for something named in the question
# are learnt last, and their answers are the shortest, so that a loss averaged over tokens would hardly hear them.
KIND_SHARES = {
    "read": 1.0,
    "count": 0.5,
    "sum": 1.0,
    "exists": 2.0,
    "how many": 2.0,
    "largest, smallest": 1.0,
    "compare": 2.0,
    "where": 2.0,
    "describe": 0.5,
}


class Asked(NamedTuple):
    """One question about one scene."""

    kind: str
    question: str
    answer: str


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _read(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    taken = [place for place in range(4) if scene.digits[place] is not None]
    empty = [place for place in range(4) if scene.digits[place] is None]
    # One question in eight asks about an empty place; otherwise "none" would be the commonest answer.
    place = int(rng.choice(empty if empty and rng.random() < 0.125 else taken))
    phrasings = ("Which digit is at the {}?", "What is at the {}?", "Read the digit at the {}.")
    digit = scene.digits[place]
    return _pick(rng, phrasings).format(PLACES[place]), "none" if digit is None else str(digit)


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    phrasings = ("How many digits are there?", "How many digits do you see?", "Count the digits.")
    return _pick(rng, phrasings), str(len(scene.present))


def _sum(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    if len(scene.present) < 2:
        return None
    phrasings = ("What is the sum of the digits?", "Add up the digits.", "What do the digits add up to?")
    terms = "+".join(str(digit) for digit in scene.present)
    return _pick(rng, phrasings), f"{terms}={sum(scene.present)}"


def _exists(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    absent = [digit for digit in range(10) if digit not in scene.present]
    yes = bool(rng.random() < 0.5)
    digit = int(rng.choice(sorted(set(scene.present)) if yes else absent))
    phrasings = ("Is there a {}?", "Do you see a {}?", "Is a {} in the picture?")
    return _pick(rng, phrasings).format(digit), "yes" if yes else "no"


def _how_many(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    # The number asked for is drawn from those the scene can answer, so that the rarer "2" and "3" are not drowned.
    by_count: dict[int, list[int]] = {}
    for digit in range(10):
        by_count.setdefault(scene.present.count(digit), []).append(digit)
    count = int(rng.choice(sorted(by_count)))
    phrasings = ("How many {}s are there?", "How many {}s do you see?", "Count the {}s.")
    return _pick(rng, phrasings).format(int(rng.choice(by_count[count]))), str(count)


def _extreme(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    if len(scene.present) < 2:
        return None
    largest = bool(rng.random() < 0.5)
    phrasings = ("What is the {} digit?", "Which digit is the {}?", "Name the {} digit.")
    question = _pick(rng, phrasings).format("largest" if largest else "smallest")
    return question, str(max(scene.present) if largest else min(scene.present))


def _compare(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    pairs = [
        (one, other, scene.digits[one] > scene.digits[other])  # type: ignore[operator]
        for one in range(4)
        for other in range(4)
        if scene.digits[one] is not None
        and scene.digits[other] is not None
        and scene.digits[one] != scene.digits[other]
    ]
    if not pairs:
        return None
    one, other, first_is_larger = pairs[int(rng.integers(len(pairs)))]
    phrasings = ("Which is larger, the {} or the {} digit?", "Which digit is larger, {} or {}?")
    return _pick(rng, phrasings).format(PLACES[one], PLACES[other]), PLACES[one if first_is_larger else other]


def _where(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    unique = [place for place in range(4) if scene.present.count(scene.digits[place]) == 1]
    if not unique:
        return None
    place = int(rng.choice(unique))
    phrasings = ("Where is the {}?", "Where do you see the {}?", "At which place is the {}?")
    return _pick(rng, phrasings).format(scene.digits[place]), PLACES[place]


def _describe(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    phrasings = ("Describe the picture.", "What do you see?", "What is in the picture?")
    parts = [f"{digit} {PLACES[place]}" for place, digit in enumerate(scene.digits) if digit is not None]
    return _pick(rng, phrasings), ", ".join(parts) + "."


_ASK: dict[str, Callable[[Scene, np.random.Generator], tuple[str, str] | None]] = {
    "read": _read,
    "count": _count,
    "sum": _sum,
    "exists": _exists,
    "how many": _how_many,
    "largest, smallest": _extreme,
    "compare": _compare,
    "where": _where,
    "describe": _describe,
}
KINDS = tuple(_ASK)
_KIND_PROBABILITIES = np.array([KIND_SHARES[kind] for kind in KINDS]) / sum(KIND_SHARES.values())


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Asked | None:
    """A question of a kind about a scene, or None where the scene allows none (the sum of a single digit)."""
    asked = _ASK[kind](scene, rng)
    return None if asked is None else Asked(kind, *asked)


def ask_some(scene: Scene, rng: np.random.Generator) -> list[Asked]:
    """Questions about a scene in random order, kinds in the shares of `KIND_SHARES`, as far as the scene allows them."""
    kinds = rng.choice(KINDS, size=DRAWS, p=_KIND_PROBABILITIES)
    return [asked for kind in kinds if (asked := ask(scene, str(kind), rng)) is not None]
