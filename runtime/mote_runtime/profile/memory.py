"""Resident memory of this process over time: anonymous, which is the process's own, and file-backed, which the system can drop."""

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mote_runtime.errors import MoteError
from mote_runtime.generation import now_ms
from mote_runtime.profile.record import Memory

INTERVAL_S = 0.01
_STATUS = Path("/proc/self/status")
_MAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)$")
_MAPPING_FIELD = re.compile(r"^(Rss|Pss|Anonymous|Locked): +(\d+) kB$")
_FIELDS = re.compile(rb"^(RssAnon|RssFile):\s+(\d+) kB$", re.MULTILINE)


def resident_bytes() -> tuple[int, int]:
    """Anonymous and file-backed resident bytes now; raises MoteError where /proc does not say."""
    try:
        found = dict(_FIELDS.findall(_STATUS.read_bytes()))
        return int(found[b"RssAnon"]) << 10, int(found[b"RssFile"]) << 10
    except (OSError, KeyError) as error:
        raise MoteError(f"{_STATUS} does not tell resident memory ({error}); profile on Linux 4.5 or newer") from error


@dataclass(frozen=True, slots=True)
class MappedFiles:
    """What this process has mapped of the files of a folder, in bytes.

    Attributes:
        size: addresses.
        resident: in memory, and mapped here.
        share: of that, each page divided by the number of processes that have it mapped.
        anonymous: of that, pages of the process's own: it wrote to them.
        locked: of that, pages that the system may not drop.
        ranges: address and size of each mapping.
    """

    size: int
    resident: int
    share: int
    anonymous: int
    locked: int
    ranges: tuple[tuple[int, int], ...]


def mapped_files(folder: Path) -> MappedFiles:
    """The mappings of files in `folder` now; raises MoteError where /proc does not say."""
    inside, sums = False, dict.fromkeys(("Rss", "Pss", "Anonymous", "Locked"), 0)
    ranges: list[tuple[int, int]] = []
    prefix = f"{folder.resolve()}/"
    try:
        lines = _MAPS.read_text(errors="replace").splitlines()
    except OSError as error:
        raise MoteError(f"{_MAPS} does not tell what is mapped ({error}); profile on Linux 4.5 or newer") from error
    for line in lines:
        if mapping := _MAPPING.match(line):
            start, end, path = int(mapping[1], 16), int(mapping[2], 16), mapping[3]
            inside = path.startswith(prefix)
            ranges += [(start, end - start)] if inside else []
        elif inside and (field := _MAPPING_FIELD.match(line)):
            sums[field[1]] += int(field[2]) << 10
    size = sum(length for _, length in ranges)
    return MappedFiles(size, sums["Rss"], sums["Pss"], sums["Anonymous"], sums["Locked"], tuple(ranges))


class MemorySampler:
    """Samples in a thread while the `with` block runs, every 10 ms, and whenever `mark` is called."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int, int]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self.mark()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.mark()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self.mark()

    def mark(self) -> None:
        """Take a sample now, as at the end of a stage."""
        with self._lock:
            self._samples.append((now_ms(), *resident_bytes()))

    def memory(self) -> Memory:
        """What was seen so far."""
        with self._lock:
            samples = tuple(self._samples)
        return Memory(samples, max(sample[1] for sample in samples), max(sample[2] for sample in samples))
