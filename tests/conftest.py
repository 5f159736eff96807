"""Shared set-up: warnings that no user can act on, paths of the helpers beside the tests, and the demo model's export."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent))

DEMO_MODEL = Path(__file__).parent.parent / "examples" / "digits_vqa" / "model.pt"


@pytest.fixture(scope="session")
def demo_export() -> Path:
    """A folder with onnx/ and executorch/ of the demo model, the one in the Android app's tests. Not to be written to."""
    from android_demo.tools.models import export_demo_model
    from android_demo.tools.paths import MODELS
    from android_demo.tools.run import building

    with building():  # nothing to do if neither the exporter nor the plugin has changed since
        export_demo_model()
    return MODELS
