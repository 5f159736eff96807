"""Shared set-up: warnings that no user can act on, paths of the helpers beside the tests, and the demo model's export."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent))

# Files that take longest, longest first. Each goes to a process as a whole, and one that starts last leaves the others idle.
LONGEST = (
    "test_export_cli", "test_android_apk", "test_plugin_executorch", "test_export", "test_demo_model", "test_optimum",
    "test_text_only", "test_profile_traces", "test_runner", "test_quantize", "test_profile_device", "test_portable",
    "test_docs", "test_client_executorch", "test_android_arm", "test_api", "test_client_genai", "test_android_app",
    "test_tutorial", "test_train_processes", "test_upcycle", "test_eval", "test_method", "test_runtime_executorch",
)  # fmt: skip
DEMO_MODEL = Path(__file__).parent.parent / "examples" / "digits_vqa" / "model.pt"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files in the order of LONGEST in pytest-xdist's processes, which want --no-loadscope-reorder for it."""
    if hasattr(config, "workerinput"):
        rank = {name: index for index, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def demo_export() -> Path:
    """A folder with onnx/ and executorch/ of the demo model, the one in the Android app's tests. Not to be written to."""
    from android_demo.tools.models import export_demo_model
    from android_demo.tools.paths import MODELS
    from android_demo.tools.run import building

    with building():  # nothing to do if neither the exporter nor the plugin has changed since
        export_demo_model()
    return MODELS
