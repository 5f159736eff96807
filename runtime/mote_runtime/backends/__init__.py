"""The runtimes a model can be loaded in; a new one is a module beside this and a line in the registry."""

import importlib
from dataclasses import dataclass

from mote_runtime.backends.base import Backend
from mote_runtime.manifest import Manifest

__all__ = ["RUNTIMES", "Backend", "Runtime", "open_backend"]


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


def open_backend(manifest: Manifest, threads: int | None = None) -> Backend:
    """Load the model in the runtime it was exported for, which is imported only now; raises BackendError."""
    runtime = RUNTIMES[manifest.target]
    backend: Backend = getattr(importlib.import_module(runtime.module), runtime.backend)(manifest, threads)
    return backend
