"""The inner phases of our operators, recorded by the plugin that a runtime has loaded (runtime/core/include/mote/trace.h)."""

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mote_runtime.errors import BackendError
from mote_runtime.library import Runtime, get_library_path
from mote_runtime.profile.strict import ProfileError

# A MoteTraceEvent; `expert` is one of the routed experts or one of the two numbers below.
EVENT = np.dtype(
    [
        ("begin_ns", "<u8"),
        ("end_ns", "<u8"),
        ("layer", "<u8"),
        ("thread", "<u8"),
        ("bytes", "<u8"),
        ("call", "<u4"),
        ("tokens", "<u4"),
        ("phase", "<u2"),
        ("expert", "<u2"),
        ("token", "<u4"),
        ("rank", "<u4"),
        ("reserved", "<u4"),
    ]
)
assert EVENT.itemsize == 64
NO_EXPERT, SHARED_EXPERT = 0xFFFF, 0xFFFE
MAX_EVENTS = 1 << 22  # 256 MiB; memory is touched as events arrive
MAX_PHASES = 256
# What the plugins of this version call the phases; records from a device come without their names.
PHASE_NAMES = (
    "layer",
    "quantize",
    "router",
    "route",
    "gather",
    "gate_up",
    "quantize_hidden",
    "down",
    "combine",
    "matmul",
    "linear",
)

EventArray = npt.NDArray[np.void]


class InnerTrace:
    """Starts and stops recording in the plugin of one runtime, which must be loaded into this process."""

    def __init__(self, runtime: Runtime) -> None:
        """Raises BackendError where the plugin is missing, or too old to record."""
        path = get_library_path(runtime)
        try:
            self._library = ctypes.CDLL(str(path))  # the copy that is loaded already
            self._start = self._library.mote_trace_start
            self._stop = self._library.mote_trace_stop
            self._read = self._library.mote_trace_read
            name = self._library.mote_trace_phase_name
        except (OSError, AttributeError) as error:
            raise BackendError(
                f"{path} cannot record its phases ({error}); install mote anew, or run `make build`"
            ) from error
        self._start.argtypes, self._start.restype = [ctypes.c_uint64], ctypes.c_int
        self._stop.argtypes, self._stop.restype = [ctypes.POINTER(ctypes.c_uint64)], ctypes.c_uint64
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
        self._read.restype = ctypes.c_uint64
        name.argtypes, name.restype = [ctypes.c_uint16], ctypes.c_char_p
        self.phase_names = _phase_names(name)

    def start(self, capacity: int = MAX_EVENTS) -> None:
        """Forget what was recorded and record; raises BackendError where there is no memory for `capacity` events."""
        if self._start(capacity) != 0:
            raise BackendError(f"no memory to record {capacity} events of the operators")

    def stop(self) -> tuple[EventArray, int]:
        """Stop; the events in the order in which they ended, and how many more did not fit."""
        dropped = ctypes.c_uint64(0)
        count = self._stop(ctypes.byref(dropped))
        events = np.zeros(count, EVENT)
        copied = self._read(events.ctypes.data, 0, count)
        return events[:copied], dropped.value


def _phase_names(function: "ctypes._NamedFuncPointer") -> tuple[str, ...]:
    names: list[str] = []
    while len(names) < MAX_PHASES and (name := function(len(names))) is not None:
        names.append(name.decode("ascii", errors="replace"))
    return tuple(names)


def read_events(content: bytes | Path, name: str) -> EventArray:
    """Events from the raw bytes of a file; raises ProfileError where they are not a whole number of events, or too many."""
    try:
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size % EVENT.itemsize or size > MAX_EVENTS * EVENT.itemsize:
            raise ProfileError(
                f"{name} has {size} bytes; expected a multiple of {EVENT.itemsize}, at most {MAX_EVENTS} times it"
            )
        events = np.frombuffer(content.read_bytes() if isinstance(content, Path) else content, EVENT)
    except OSError as error:
        raise ProfileError(f"{name} cannot be read: {error.strerror}") from error
    if np.any(events["end_ns"] < events["begin_ns"]) or np.any(events["end_ns"] >> np.uint64(62)):
        raise ProfileError(
            f"{name} holds an event that ends before it begins; expected records of the operators' phases"
        )
    return events
