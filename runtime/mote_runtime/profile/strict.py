"""Reads JSON from outside field by field: each type, range and length is checked, and a refusal names the field."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mote_runtime.errors import MoteError

MAX_FILE_BYTES = 256 << 20
_SHOWN_CHARACTERS = 60


class ProfileError(MoteError):
    """A profile, a record or a trace is missing, damaged, or not one that this version reads."""


def read_json(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """The document of a JSON file of at most `max_bytes`; raises ProfileError."""
    try:
        if not path.is_file():  # a pipe or a device could be read without end
            raise ProfileError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
        size = path.stat().st_size
        if size > max_bytes:
            raise ProfileError(f"{path} has {size} bytes; expected at most {max_bytes}")
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}") from error


def parse_json(content: bytes | str, name: str) -> Any:
    """The document of a JSON text, without NaN or infinity; raises ProfileError that calls it `name`."""
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{name} is not a readable JSON document: {shown(str(error))}") from error


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def shown(value: object) -> str:
    """A value for a message: escaped and short, since it may come from a hostile file."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


class Fields:
    """A JSON object whose fields are taken out with a check each; unknown fields are left alone."""

    def __init__(self, document: object, name: str) -> None:
        """`name` is what messages call the object; raises ProfileError where `document` is no object."""
        if not isinstance(document, dict):
            raise ProfileError(f"{name} is {shown(document)}; expected a JSON object")
        self._fields = document
        self.name = name

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self._fields.get(key) is not None

    def value(self, key: str) -> Any:
        """The raw value, None where it is missing."""
        return self._fields.get(key)

    def refuse(self, key: str, expected: str) -> ProfileError:
        """The error for a field, to be raised."""
        found = shown(self._fields[key]) if key in self._fields else "missing"
        return ProfileError(f"{self.name}: field {key!r} is {found}; expected {expected}")

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer from `low` to `high`."""
        value = self.value(key)
        if type(value) is not int or not low <= value <= high:  # bool is an int to isinstance
            raise self.refuse(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number from `low` to `high`."""
        value = self.value(key)
        if not _is_number(value) or not low <= value <= high:
            raise self.refuse(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, key: str, low: float, high: float, max_length: int) -> tuple[float, ...]:
        """A list of finite numbers, each from `low` to `high`."""
        value = self.value(key)
        good = isinstance(value, list) and len(value) <= max_length
        if not good or not all(_is_number(item) and low <= item <= high for item in value):
            raise self.refuse(key, f"a list of at most {max_length} numbers from {low:g} to {high:g}")
        return tuple(map(float, value))

    def integers(self, key: str, low: int, high: int, max_length: int) -> tuple[int, ...]:
        """A list of integers, each from `low` to `high`."""
        value = self.value(key)
        good = isinstance(value, list) and len(value) <= max_length
        if not good or not all(type(item) is int and low <= item <= high for item in value):
            raise self.refuse(key, f"a list of at most {max_length} integers from {low} to {high}")
        return tuple(value)

    def text(self, key: str, max_length: int = 1000) -> str:
        """A string of at most `max_length` characters."""
        value = self.value(key)
        if not isinstance(value, str) or len(value) > max_length:
            raise self.refuse(key, f"a string of at most {max_length} characters")
        return value

    def optional_text(self, key: str, max_length: int = 1000) -> str | None:
        """A string, or None where the field is missing or null."""
        return self.text(key, max_length) if self.has(key) else None

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        """One of the strings allowed."""
        value = self.value(key)
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(key, " or ".join(map(repr, allowed)))
        return value

    def section(self, key: str) -> "Fields":
        """An object."""
        return Fields(self.value(key), f"{self.name}: {key}")

    def rows(self, key: str, max_length: int) -> list[Any]:
        """A list of anything, to be checked further."""
        value = self.value(key)
        if not isinstance(value, list) or len(value) > max_length:
            raise self.refuse(key, f"a list of at most {max_length}")
        return value


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False
