"""Where things are, and the versions of libs.versions.toml."""

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "android_demo"
BUILD = ROOT / "build" / "android"
MODELS = BUILD / "models" / "digits"  # onnx/ and executorch/ inside
SCREENSHOTS = BUILD / "screenshots"
PYTHON = ROOT / ".venv" / "bin" / "python"  # of `make build`
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mote"  # outlives the build folder

CATALOG = tomllib.loads((PROJECT / "gradle" / "libs.versions.toml").read_text())
VERSIONS: dict[str, str] = CATALOG["versions"]


def coordinates(library: str) -> str:
    """group:artifact:version of a library of the catalog, e.g. `kotlin-stdlib`."""
    entry = CATALOG["libraries"][library]
    return f"{entry['module']}:{VERSIONS[entry['version']['ref']]}"
