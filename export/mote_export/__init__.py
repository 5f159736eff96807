"""Offline side of mote: the MoTE model, its checkpoints, the packed layout, export passes and targets.

>>> import mote_export
>>> mote_export.export("model.pt", "exported", target="onnx")
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mote_export.integrations import announce

if TYPE_CHECKING:
    from mote_export.api import export

__all__ = ["__version__", "export"]

try:
    __version__ = version("mote")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    """`export` is imported at its first use: it needs torch, whose import takes seconds, and `mote-export --help` does not."""
    if name != "export":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mote_export.quiet import quiet_libraries

    with quiet_libraries():
        from mote_export.api import export
    return export


announce()
