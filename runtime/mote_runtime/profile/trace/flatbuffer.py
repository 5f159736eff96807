"""Reads FlatBuffers from untrusted bytes: tables, vectors and strings by field number, every offset checked."""

import struct
from collections.abc import Iterator

from mote_runtime.profile.strict import ProfileError

MAX_ELEMENTS = 1 << 24
_LEAST_TABLE_BYTES = 4  # the offset of its index
_GREATEST_REUSE = 16  # writers share equal strings and vectors, and a reader may look twice


class _Budget:
    """How many bytes may still be read: offsets of a small file can name the same parts again and again, without end."""

    __slots__ = ("_left", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = _GREATEST_REUSE * size

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ProfileError(
                f"a FlatBuffer of {self._size} bytes names the same parts too often; the file is damaged"
            )


class Table:
    """One table. Fields are numbered in the order of the schema, from 0; a union takes two numbers."""

    __slots__ = ("_at", "_budget", "_buffer", "_vtable", "_vtable_size")

    def __init__(self, buffer: memoryview, position: int, budget: _Budget) -> None:
        """The table at `position`; raises ProfileError where its index lies outside of the buffer."""
        budget.spend(_LEAST_TABLE_BYTES)
        self._budget = budget
        self._buffer = buffer
        self._at = position
        self._vtable = position - _unpack("<i", buffer, position)
        self._vtable_size = _unpack("<H", buffer, self._vtable)

    @classmethod
    def root(cls, buffer: memoryview) -> "Table":
        """The root table of the FlatBuffer at the start of `buffer`."""
        return cls(buffer, _unpack("<I", buffer, 0), _Budget(len(buffer)))

    def _table_at(self, position: int) -> "Table":
        return Table(self._buffer, position + _unpack("<I", self._buffer, position), self._budget)

    def _field(self, number: int) -> int | None:
        entry = 4 + 2 * number
        if entry + 2 > self._vtable_size:
            return None
        offset = _unpack("<H", self._buffer, self._vtable + entry)
        return self._at + offset if offset else None

    def scalar(self, number: int, code: str, default: int = 0) -> int:
        """An integer field of a struct code such as "i"; `default` where it is absent."""
        position = self._field(number)
        return default if position is None else _unpack("<" + code, self._buffer, position)

    def table(self, number: int) -> "Table | None":
        """A field that is a table, or the value of a union."""
        position = self._field(number)
        return None if position is None else self._table_at(position)

    def _vector(self, number: int, item_bytes: int) -> tuple[int, int]:
        """Where the elements start and how many there are."""
        position = self._field(number)
        if position is None:
            return 0, 0
        start = position + _unpack("<I", self._buffer, position)
        length = _unpack("<I", self._buffer, start)
        if length > MAX_ELEMENTS or start + 4 + length * item_bytes > len(self._buffer):
            raise ProfileError(f"a FlatBuffer's vector of {length} elements does not fit {len(self._buffer)} bytes")
        return start + 4, length

    def bytes(self, number: int) -> memoryview:
        """A field that is a string or a vector of bytes; empty where it is absent."""
        start, length = self._vector(number, 1)
        return self._buffer[start : start + length]

    def text(self, number: int) -> str:
        """A string field; bytes that are not UTF-8 become U+FFFD."""
        content = self.bytes(number)
        self._budget.spend(len(content))
        return bytes(content).decode("utf-8", errors="replace")

    def scalars(self, number: int, code: str) -> tuple[int, ...]:
        """A vector of integers."""
        size = struct.calcsize("<" + code)
        start, length = self._vector(number, size)
        self._budget.spend(length * size)
        return struct.unpack_from(f"<{length}{code}", self._buffer, start)

    def tables(self, number: int) -> "Iterator[Table]":
        """A vector of tables."""
        start, length = self._vector(number, 4)
        for index in range(length):
            yield self._table_at(start + 4 * index)


def _unpack(code: str, buffer: memoryview, position: int) -> int:
    if not 0 <= position <= len(buffer) - struct.calcsize(code):
        raise ProfileError(
            f"a FlatBuffer's offset of {position} lies outside of its {len(buffer)} bytes; the file is damaged"
        )
    value: int = struct.unpack_from(code, buffer, position)[0]
    return value
