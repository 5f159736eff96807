"""What an export costs: time, peak memory, and the bytes that it writes."""

from pathlib import Path
from typing import Any

from mote_runtime.manifest import MANIFEST_NAME

from . import children
from .manifests import expert_bytes, read_manifest
from .shapes import EXPLICIT, Preset, Shape, Target


def export_options(preset: Preset, explicit: bool) -> list[str]:
    """Of `mote-export`; `explicit` spells `--preset` out."""
    options = list(preset.options)
    if explicit and options[0] == "--preset":
        options[:2] = EXPLICIT[options[1]]
    return options


def measure_export(
    shape: Shape, checkpoint: Path, output: Path, target: Target, preset: Preset, *, explicit: bool, log: Path
) -> dict[str, Any]:
    """Exports into `output`, which is absent; a dictionary with `failure` if that fails."""
    options = export_options(preset, explicit)
    command = children.python(
        "benchmarks.models.export_child", checkpoint, *options, "--no-verify", "--target", target, "-o", output
    )
    run = children.run(command, log)
    if run.failure:
        return {"failure": run.failure}
    manifest = read_manifest(output)
    return {
        "seconds": run.seconds,
        "peak": run.peak,
        "anonymous": run.anonymous,
        "file": run.file,
        "options": options,
        "random_source": not shape.on_disk,
        "files": {path.name: path.stat().st_size for path in sorted(output.iterdir()) if path.name != MANIFEST_NAME},
        "experts": expert_bytes(manifest),
        "expert_parameters": shape.ffn_parameters,
    }
