"""The runtimes a model can be loaded in; a new one is a module beside this and a line in the registry."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from mote_runtime.backends.base import Backend
from mote_runtime.manifest import Manifest

__all__ = ["RUNTIMES", "Backend", "Runtime", "import_backend", "open_backend"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where the backend of a runtime is found, and the subfolder that `mote-export --target all` writes for it."""

    module: str
    backend: str
    subfolder: str


RUNTIMES = {
    "onnxruntime": Runtime("mote_runtime.backends.onnxruntime", "OnnxRuntimeBackend", "onnx"),
    "executorch": Runtime("mote_runtime.backends.executorch", "ExecuTorchBackend", "executorch"),
}


def import_backend(name: str) -> type[Backend]:
    """The backend's class, whose runtime is imported only now; raises BackendError where that is not installed."""
    runtime = RUNTIMES[name]
    backend: type[Backend] = getattr(importlib.import_module(runtime.module), runtime.backend)
    return backend


def open_backend(manifest: Manifest, threads: int | None = None, profile_folder: Path | None = None) -> Backend:
    """Load the model in the runtime it was exported for; raises BackendError.

    With a `profile_folder`, which must exist, the runtime's own profiler runs and `Backend.end_profile` writes there.
    """
    return import_backend(manifest.target)(manifest, threads, profile_folder)
