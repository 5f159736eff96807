"""ONNX Runtime: three graphs with external data, the operator as `mote::TernaryMoE`, ready for onnxruntime-genai."""

from mote_export.targets.base import Target
from mote_export.targets.onnx.export import PLUGIN, write

ONNX = Target(
    name="onnx",
    runtime="onnxruntime",
    requires=("onnx", "onnxscript", "onnxruntime"),
    extra="export",
    plugin_library=PLUGIN,
    activations="int8-by-block",
    write=write,
)
