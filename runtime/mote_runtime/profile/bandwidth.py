"""The limit of a token: how fast the chosen threads together read memory that no cache holds."""

import os
import re
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LEAST_BYTES = 256 << 20
_GREATEST_BYTES = 1 << 30
_PASSES = 7


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second read by `threads` threads from a buffer of `buffer_bytes`: the best and the median of all passes.

    `last_level_cache_bytes` is None where the system does not say. A buffer that this cache could hold is no measure of memory.
    """

    threads: int
    buffer_bytes: int
    last_level_cache_bytes: int | None
    best_bytes_per_sec: float
    median_bytes_per_sec: float

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)


def last_level_cache_bytes(caches: Path = _CACHES) -> int | None:
    """Size of the greatest cache of the first core; None where the system does not say."""
    sizes = []
    for path in caches.glob("index*/size"):
        if found := re.fullmatch(r"(\d+)([KM])", path.read_text().strip()):
            sizes.append(int(found[1]) << (10 if found[2] == "K" else 20))
    return max(sizes, default=None)


def measure_bandwidth(threads: int, cores: tuple[int, ...] | None) -> Bandwidth:
    """Take the maximum of a large buffer, a slice for each thread, several times; about a second.

    numpy's maximum of float32 does one vector instruction for each cache line or two and lets go of the interpreter, so memory is
    what it waits for.
    """
    cache = last_level_cache_bytes()
    wanted = max(_LEAST_BYTES, 2 * (cache or 0))
    size = min(wanted, _GREATEST_BYTES, _available_bytes() // 4)
    buffer = np.ones(size // 4, np.float32)
    slices = np.array_split(buffer, threads)
    speeds = []
    for _ in range(_PASSES + 1):
        workers = [threading.Thread(target=_read, args=(piece, cores)) for piece in slices]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        speeds.append(buffer.nbytes / (time.perf_counter() - start))
    measured = speeds[1:]  # the first pass meets threads and pages that are new
    return Bandwidth(threads, buffer.nbytes, cache, max(measured), float(np.median(measured)))


def _read(piece: "np.ndarray[Any, np.dtype[np.float32]]", cores: tuple[int, ...] | None) -> None:
    if cores is not None:
        os.sched_setaffinity(0, cores)  # of this thread alone
    piece.max()


def _available_bytes() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 4 * _LEAST_BYTES
