"""Offline side of mote: the MoTE model, its checkpoints, the packed layout, export passes and targets."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mote")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
