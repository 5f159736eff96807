"""The tasks: questions about a scene of four digits, some of which need facts that only training tells.

A model of this size answers all of them only if its feed-forward layers hold the tables: products, sums of two-digit
numbers, and facts that are drawn at random ("book K says 47 about a 3"), so that nothing but memory helps.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

POSITIONS = ("first", "second", "third", "fourth")  # in reading order; one token each
NUM_BOOKS = 26
NUM_TABLES = 12
_FACTS_SEED = 20_250_614
_FACTS = np.random.default_rng(_FACTS_SEED)
BOOKS = _FACTS.integers(0, 100, size=(NUM_BOOKS, 10))  # what a book says about a digit: 00 to 99
TABLES = _FACTS.integers(0, 10, size=(NUM_TABLES, 10, 10))  # a table's digit for two digits

Digits = tuple[int, int, int, int]


class Asked(NamedTuple):
    """A question and its one right answer."""

    question: str
    answer: str


class Task(NamedTuple):
    """How a question is made, and how often it is asked in training, relative to the others."""

    ask: Callable[[Digits, np.random.Generator], Asked]
    share: float


def _two(rng: np.random.Generator) -> tuple[int, int]:
    one, other = rng.choice(4, size=2, replace=False)
    return int(one), int(other)


def _read(digits: Digits, rng: np.random.Generator) -> Asked:
    place = int(rng.integers(4))
    return Asked(f"Which digit is {POSITIONS[place]}?", str(digits[place]))


def _sort(digits: Digits, rng: np.random.Generator) -> Asked:
    return Asked("Sort the digits.", " ".join(map(str, sorted(digits))))


def _above(digits: Digits, rng: np.random.Generator) -> Asked:
    limit = int(rng.integers(1, 9))
    return Asked(f"How many digits are above {limit}?", str(sum(digit > limit for digit in digits)))


def _sum(digits: Digits, rng: np.random.Generator) -> Asked:
    return Asked("Sum of the digits?", str(sum(digits)))


def _product(digits: Digits, rng: np.random.Generator) -> Asked:
    one, other = _two(rng)
    return Asked(f"{POSITIONS[one]} times {POSITIONS[other]}?", str(digits[one] * digits[other]))


def _add(digits: Digits, rng: np.random.Generator) -> Asked:
    """The rows, or the columns, as numbers of two digits."""
    a, b, c, d = digits
    if rng.random() < 0.5:
        return Asked("Add the rows.", str(10 * a + b + 10 * c + d))
    return Asked("Add the columns.", str(10 * a + c + 10 * b + d))


def _book(digits: Digits, rng: np.random.Generator) -> Asked:
    place, book = int(rng.integers(4)), int(rng.integers(NUM_BOOKS))
    return Asked(f"Book {string.ascii_uppercase[book]}, {POSITIONS[place]}?", f"{BOOKS[book, digits[place]]:02d}")


def _table(digits: Digits, rng: np.random.Generator) -> Asked:
    (one, other), table = _two(rng), int(rng.integers(NUM_TABLES))
    name = string.ascii_uppercase[table]
    return Asked(f"{POSITIONS[one]} {name} {POSITIONS[other]}?", str(TABLES[table, digits[one], digits[other]]))


TASKS: dict[str, Task] = {
    "read": Task(_read, 0.4),
    "sort": Task(_sort, 0.4),
    "above": Task(_above, 0.5),
    "sum": Task(_sum, 0.7),
    "product": Task(_product, 1.0),
    "add": Task(_add, 1.2),
    "book": Task(_book, 2.0),
    "table": Task(_table, 2.5),
}
# What the base model learns first, as a pretrained one can read and count: the facts come with instruction tuning.
BASE_SHARES = {"read": 3.0, "sort": 1.5, "above": 1.0, "sum": 1.0, "product": 0.7, "add": 0.7}
