"""Native code: for this machine, as the JVM tests load it, and for Android without the NDK."""

import os
import sys
from pathlib import Path

from android_demo.tools.paths import BUILD, PROJECT, PYTHON
from android_demo.tools.run import note, run

SOURCES = PROJECT / "engine" / "src" / "main" / "cpp"
DESKTOP = BUILD / "desktop"
DESKTOP_LIBRARIES = DESKTOP / "lib"


def _environment() -> dict[str, str]:
    """With the environment's cmake and ninja, newer than the system's, and its Python, through which CMake finds ExecuTorch."""
    folder = PYTHON.parent if PYTHON.is_file() else Path(sys.executable).parent
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def build_desktop() -> None:
    """Builds all libraries of the engine for this machine into DESKTOP_LIBRARIES; CMake knows what changed."""
    if not (SOURCES / "CMakeLists.txt").is_file():
        note("there is no native code of the engine yet")
        return
    environment = _environment()
    if not (DESKTOP / "build.ninja").is_file():
        note("configuring native code for this machine")
        run("cmake", "-S", SOURCES, "-B", DESKTOP, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", env=environment)
    run("cmake", "--build", DESKTOP, env=environment)
