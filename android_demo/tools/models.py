"""The demo model, exported for both runtimes."""

import json
import sys
from pathlib import Path

from android_demo.tools.paths import MODELS, PYTHON, ROOT
from android_demo.tools.run import Step, ToolError, empty, files_below, note, run

CHECKPOINT = ROOT / "examples" / "digits_vqa" / "model.pt"


def export_demo_model() -> None:
    """Exports the checkpoint into MODELS/onnx and MODELS/executorch unless that was done with this exporter."""
    exporter = [
        *files_below(ROOT / "export" / "mote_export", "*.py"),
        *files_below(ROOT / "runtime", "*.py", "*.cpp", "*.h"),  # it verifies, and takes a copy of the plugin along
        ROOT / "pyproject.toml",
    ]
    step = Step(MODELS.with_suffix(".stamp"), [CHECKPOINT, *exporter])
    if not step.is_due() and _is_complete():
        return
    # Of the environment that this runs in, if it has one: tests are run in others than that of `make build`, too.
    programs = [folder / "mote-export" for folder in (Path(sys.executable).parent, PYTHON.parent)]
    program = next((path for path in programs if path.is_file()), None)
    if program is None:
        raise ToolError(f"the export of the demo model needs {programs[-1].relative_to(ROOT)}: run `make build`")
    note("exporting the demo model")
    empty(MODELS)
    run(program, CHECKPOINT, "-o", MODELS, "--target", "all")
    step.done()


def _is_complete() -> bool:
    for target in ("onnx", "executorch"):
        folder = MODELS / target
        manifest = folder / "mote.json"
        if not manifest.is_file():
            return False
        files = json.loads(manifest.read_text())["files"]
        if any(not (folder / name).is_file() for name in files):
            return False
    return True
