"""An ONNX model of somebody else's: its ternary weights are found and run in mote's operators (docs/onnx-import.md)."""

from mote_export.onnx_import.compare import Comparison
from mote_export.onnx_import.read import OnnxFileError, read_model
from mote_export.onnx_import.rewrite import NothingToRewriteError, RewriteResult, rewrite_model, rewrite_onnx
from mote_export.onnx_import.state import Left, RewriteOptions, Rewritten

__all__ = [
    "Comparison",
    "Left",
    "NothingToRewriteError",
    "OnnxFileError",
    "RewriteOptions",
    "RewriteResult",
    "Rewritten",
    "read_model",
    "rewrite_model",
    "rewrite_onnx",
]
