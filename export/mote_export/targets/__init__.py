"""Where an export can go. A new target is one package here and one line in `TARGETS`."""

from mote_export.targets.base import ExportSettings, Target
from mote_export.targets.executorch import EXECUTORCH
from mote_export.targets.onnx import ONNX

TARGETS: dict[str, Target] = {target.name: target for target in (ONNX, EXECUTORCH)}

__all__ = ["TARGETS", "ExportSettings", "Target"]
