"""ONNX Runtime: three graphs with external data, the operator as `mote::TernaryMoE`, ready for onnxruntime-genai."""

from mote_export.targets.base import Target
from mote_export.targets.onnx.export import PLUGIN, write
from mote_runtime.manifest import KV_CACHES

ONNX = Target(
    name="onnx",
    runtime="onnxruntime",
    requires=("onnx", "onnxscript", "onnxruntime"),
    extra="export",
    plugin_library=PLUGIN,
    activations="int8-by-block",
    write=write,
    kv_caches=KV_CACHES,
)
