"""Where the plugins are: one shared library for each runtime, in the `lib` folder of the installed package."""

import contextlib
import ctypes
import importlib
import threading
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

from mote_runtime.errors import BackendError

Runtime = Literal["onnxruntime", "executorch"]

_FILE_NAMES: dict[Runtime, str] = {"onnxruntime": "libmote_ort.so", "executorch": "libmote_executorch.so"}
_CURES: dict[Runtime, str] = {
    "onnxruntime": "install mote with pip, or run `make build` in a source tree",
    "executorch": "install mote with pip where executorch 1.5 has a package, or run `make build` in a source tree",
}
_load_lock = threading.Lock()
_executorch_library: ctypes.CDLL | None = None


def get_library_path(runtime: Runtime = "onnxruntime") -> Path:
    """Path of the plugin for a runtime, to be handed to it.

    ONNX Runtime takes it in `SessionOptions.register_custom_ops_library`; for ExecuTorch see `load_executorch_library`.

    Raises:
        ValueError: there is no such runtime.
        BackendError: the plugin was not built.
    """
    if runtime not in _FILE_NAMES:
        raise ValueError(f"runtime is {runtime!r}, expected one of {', '.join(map(repr, get_args(Runtime)))}")
    for folder in _library_folders():
        path = folder / _FILE_NAMES[runtime]
        if path.is_file():
            return path
    raise BackendError(f"{_FILE_NAMES[runtime]} is not installed with mote_runtime: {_CURES[runtime]}")


def _library_folders() -> list[Path]:
    folders = [Path(__file__).resolve().parent / "lib"]
    with contextlib.suppress(metadata.PackageNotFoundError):  # a source tree that was never installed
        # In an editable install the sources stay in the source tree, and the plugins go to site-packages.
        folders.append(Path(str(metadata.distribution("mote").locate_file("mote_runtime/lib"))))
    return folders


def import_executorch() -> ModuleType:
    """ExecuTorch's binding, with torch, whose libraries it needs; raises ImportError or, for a library, OSError.

    Its public module, portable_lib, is the same with the exporter around it: three seconds and 140 MB more to import.
    """
    importlib.import_module("torch")
    try:
        return importlib.import_module("executorch.extension.pybindings._C")
    except ModuleNotFoundError:  # it has another name there, or there is none
        return importlib.import_module("executorch.extension.pybindings.portable_lib")


def load_executorch_library() -> None:
    """Registers the operators of mote with the ExecuTorch of this process. Only the first call does something.

    Raises:
        BackendError: ExecuTorch or the plugin is not installed, or the plugin was built for another ExecuTorch.
    """
    global _executorch_library
    with _load_lock:
        if _executorch_library is not None:
            return
        try:
            # Loads the runtime with the operator registry, which the plugin then shares.
            import_executorch()
        except ImportError as error:
            raise BackendError(
                f"ExecuTorch cannot be imported ({error}): install it with pip install 'mote[executorch]'"
            ) from error
        path = get_library_path("executorch")
        try:
            _executorch_library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise BackendError(
                f"{path.name} cannot be loaded ({error}): it belongs to executorch 1.5, "
                "reinstall mote if that was changed"
            ) from error
