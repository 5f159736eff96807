"""Runs models that mote-export wrote, in ONNX Runtime (without torch) or ExecuTorch.

>>> with mote_runtime.load("exported") as pipeline:
...     for piece in pipeline.generate("photo.png", "What is shown?"):
...         print(piece, end="", flush=True)
"""

from importlib import metadata

from mote_runtime.errors import MoteError
from mote_runtime.generation import Answer
from mote_runtime.library import get_library_path
from mote_runtime.pipeline import Pipeline, load

__all__ = ["Answer", "MoteError", "Pipeline", "__version__", "get_library_path", "load"]

try:
    __version__ = metadata.version("mote")
except metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
