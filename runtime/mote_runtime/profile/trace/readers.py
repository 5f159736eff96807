"""The readers of the runtimes' own profilers, chosen by runtime."""

from collections.abc import Mapping
from pathlib import Path

from mote_runtime.manifest import Manifest
from mote_runtime.profile.trace.etdump import read_etdump
from mote_runtime.profile.trace.events import Run
from mote_runtime.profile.trace.ort_trace import read_ort_profiles
from mote_runtime.profile.trace.program import read_program


def read_runs(runtime: str, files: Mapping[str, Path], manifest: Manifest) -> dict[str, list[Run]]:
    """What the runtime's profiler wrote, by clock: ONNX Runtime's sessions have one each, an ETDump has one for all parts.

    `files` as `Backend.end_profile` names them. Raises ProfileError.
    """
    if runtime == "onnxruntime":
        return {part: read_ort_profiles({part: path}) for part, path in files.items()}
    return {clock: read_etdump(path, read_program(manifest.path("model.pte"))) for clock, path in files.items()}
