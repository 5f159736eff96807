"""Shared set-up: warnings that no user can act on, paths of the helpers beside the tests, and the demo model's export."""

import os
import sys
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent))

DEMO_MODEL = Path(__file__).parent.parent / "examples" / "digits_vqa" / "model.pt"


@pytest.fixture(scope="session")
def demo_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with onnx/ and executorch/ of the demo model, made once for all processes of a test run. Not to be written to."""
    from mote_export.exporter import export

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # each process has a folder of its own in it
    output = folder / "demo-export"
    with FileLock(output.with_suffix(".lock")):
        if not output.exists():  # it appears complete or not at all
            export(DEMO_MODEL, output, ["onnx", "executorch"])
    return output
