"""ExecuTorch: one multi-method model.pte with XNNPACK for stock layers and `mote::ternary_moe` for the experts."""

from mote_export.targets.base import Target
from mote_export.targets.executorch.export import write

EXECUTORCH = Target(
    name="executorch",
    runtime="executorch",
    requires=("executorch.exir",),
    extra="executorch",
    plugin_library="libmote_executorch.so",
    activations="int8-by-token",
    write=write,
)
