"""Keeps a library from locking mapped files in memory.

What is locked is read at once, whole, and never dropped again: a model that is larger than the memory it may use ends the process.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

try:
    import resource
except ImportError:  # no such limits there
    resource = None  # type: ignore[assignment]

# Linux's capabilities(7): the second layout of sets, in two words each, and the right to lock beyond the limit.
_VERSION = 0x20080522
_IPC_LOCK = 1 << 14
_one_at_a_time = threading.RLock()


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("thread", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def no_memory_lock() -> Iterator[None]:
    """While the block runs, `mlock` of this thread fails; where the system has no means for that it is as always.

    The limit on locked memory is the process's, so other threads find it at 0 as well; one block runs at a time.
    """
    with _one_at_a_time, _no_limit_left(), _no_privilege():
        yield


@contextlib.contextmanager
def _no_limit_left() -> Iterator[None]:
    if resource is None or not hasattr(resource, "RLIMIT_MEMLOCK"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


@contextlib.contextmanager
def _no_privilege() -> Iterator[None]:
    """A privileged process (root in a container) passes over the limit; this thread gives that up meanwhile."""
    library = ctypes.CDLL(None)
    header, sets = _Header(_VERSION, 0), (_Sets * 2)()
    known = hasattr(library, "capget") and library.capget(ctypes.byref(header), sets) == 0
    if not known or not sets[0].effective & _IPC_LOCK:
        yield
        return
    sets[0].effective ^= _IPC_LOCK
    library.capset(ctypes.byref(header), sets)
    try:
        yield
    finally:
        sets[0].effective |= _IPC_LOCK
        library.capset(ctypes.byref(header), sets)
