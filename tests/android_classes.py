"""What code for Android refers to, and what a version of Android has: just enough of the .dex and .class formats."""

import struct
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple


class Member(NamedTuple):
    """A method or a field. Classes are named as in descriptors, without L and ;."""

    owner: str
    name: str
    descriptor: str  # (ILjava/lang/String;)V, or a field's type

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}{':' if self.descriptor[0] != '(' else ''}{self.descriptor}"


class Dex:
    """The tables of a .dex file, by the format's documentation."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        assert self._data[:4] == b"dex\n", path
        self._tables = struct.unpack_from("<14I", self._data, 0x38)  # size and offset of each, from string_ids on

    def _rows(self, table: int, layout: str) -> list[tuple[int, ...]]:
        size, offset = self._tables[2 * table : 2 * table + 2]
        return list(struct.iter_unpack(layout, self._data[offset : offset + size * struct.calcsize(layout)]))

    @cached_property
    def strings(self) -> list[str]:
        texts = []
        for (offset,) in self._rows(0, "<I"):
            while self._data[offset] & 0x80:  # its length, which ends with the first byte below 128
                offset += 1
            texts.append(_text(self._data[offset + 1 : self._data.index(0, offset + 1)]))
        return texts

    @cached_property
    def types(self) -> list[str]:
        return [self.strings[index] for (index,) in self._rows(1, "<I")]

    def _descriptor(self, return_type: int, parameters: int) -> str:
        count = struct.unpack_from("<I", self._data, parameters)[0] if parameters else 0
        indices = struct.unpack_from(f"<{count}H", self._data, parameters + 4) if count else ()
        return f"({''.join(self.types[index] for index in indices)}){self.types[return_type]}"

    def references(self) -> set[Member]:
        """All methods and fields that the code names, its own among them."""
        prototypes = [self._descriptor(returned, parameters) for _, returned, parameters in self._rows(2, "<3I")]
        found = {(owner, name, self.types[kind]) for owner, kind, name in self._rows(3, "<HHI")}
        found |= {(owner, name, prototypes[prototype]) for owner, prototype, name in self._rows(4, "<HHI")}
        return {
            Member(self.types[owner][1:-1], self.strings[name], descriptor)
            for owner, name, descriptor in found
            if self.types[owner][0] == "L"  # arrays have their methods of Object
        }


def _text(data: bytes) -> str:
    """Java's own UTF-8, in which zero is two bytes and characters beyond 16 bits are pairs of surrogates."""
    return data.replace(b"\xc0\x80", b"\0").decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Class:
    parents: tuple[str, ...]
    members: frozenset[tuple[str, str]]


class Platform:
    """The classes of a version of Android. Its jar has none of Java's own; what Android has of them is close to Java 8's."""

    def __init__(self, android_all: Path, java_home: Path) -> None:
        # The JDK knows what older versions had: a folder for the versions that agree, e.g. 87 for 7 and 8.
        symbols = zipfile.ZipFile(java_home / "lib" / "ct.sym")
        self._files = {}
        for name in symbols.namelist():
            versions, _, rest = name.partition("/")
            if "8" in versions and name.endswith(".sig"):
                self._files[rest.partition("/")[2].removesuffix(".sig")] = (symbols, name)
        android = zipfile.ZipFile(android_all)
        self._files |= {name.removesuffix(".class"): (android, name) for name in android.namelist()}
        self._classes: dict[str, Class | None] = {}

    def find(self, name: str) -> Class | None:
        if name not in self._classes:
            archive, file = self._files.get(name, (None, ""))
            self._classes[name] = None if archive is None else read_class(archive.read(file))
        return self._classes[name]

    def has(self, member: Member) -> bool:
        """Whether the class, or one that it descends from, has it."""
        found = self.find(member.owner)
        if found is None:
            return False
        inherited = (Member(parent, member.name, member.descriptor) for parent in found.parents)
        return (member.name, member.descriptor) in found.members or any(map(self.has, inherited))


# Bytes behind the tag of an entry of the constant pool.
CONSTANT_BYTES = {
    3: 4,
    4: 4,
    5: 8,
    6: 8,
    7: 2,
    8: 2,
    9: 4,
    10: 4,
    11: 4,
    12: 4,
    15: 3,
    16: 2,
    17: 4,
    18: 4,
    19: 2,
    20: 2,
}
TEXT, LONG, DOUBLE = 1, 5, 6


def read_class(data: bytes) -> Class:
    """Parents and members of a .class file, by the specification of Java's machine, section 4."""
    (count,) = struct.unpack_from(">H", data, 8)
    texts: dict[int, str] = {}
    names: dict[int, int] = {}  # of classes: where the text is
    position, index = 10, 1
    while index < count:
        tag = data[position]
        if tag == TEXT:
            (length,) = struct.unpack_from(">H", data, position + 1)
            texts[index] = _text(data[position + 3 : position + 3 + length])
            position += 3 + length
        else:
            (names[index],) = struct.unpack_from(">H", data, position + 1)
            position += 1 + CONSTANT_BYTES[tag]
        index += 2 if tag in (LONG, DOUBLE) else 1
    superclass, interfaces = struct.unpack_from(">2H", data, position + 4)
    parents = [index for index in (superclass, *struct.unpack_from(f">{interfaces}H", data, position + 8)) if index]
    position += 8 + 2 * interfaces
    members = set()
    for _ in ("fields", "methods"):
        (count,) = struct.unpack_from(">H", data, position)
        position += 2
        for _ in range(count):
            name, descriptor, attributes = struct.unpack_from(">3H", data, position + 2)
            members.add((texts[name], texts[descriptor]))
            position += 8
            for _ in range(attributes):
                position += 6 + struct.unpack_from(">I", data, position + 2)[0]
    return Class(tuple(texts[names[index]] for index in parents), frozenset(members))
