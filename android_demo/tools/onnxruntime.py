"""ONNX Runtime's official archive for Android: its Java classes, its libraries for each ABI, and the C headers."""

import io
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path

from android_demo.tools.paths import CACHE, VERSIONS
from android_demo.tools.run import ToolError, note, run

# An npm package carries the archive unchanged, for those who cannot reach the repository that Gradle takes it from.
PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
ARCHIVE = "package/Plugins/Android/onnxruntime.aar"
LIBRARIES = ("libonnxruntime.so", "libonnxruntime4j_jni.so")


def archive() -> Path:
    """The unpacked archive, downloaded once: classes.jar, jni/ABI/*.so, headers/*.h."""
    target = CACHE / f"onnxruntime-android-{PACKAGE.rpartition('@')[2]}"
    if not target.is_dir():
        _download(target)
    found = re.search(r"#define ORT_API_VERSION (\d+)", (target / "headers" / "onnxruntime_c_api.h").read_text())
    if found is None or found[1] != VERSIONS["onnxruntime"].split(".")[1]:
        raise ToolError(
            f"{PACKAGE} has API version {found and found[1]} of ONNX Runtime, but libs.versions.toml says {VERSIONS['onnxruntime']}"
        )
    return target


def libraries(abi: str) -> list[Path]:
    """The two libraries of an ABI: ONNX Runtime and what its Java classes call."""
    return [archive() / "jni" / abi / name for name in LIBRARIES]


def _download(target: Path) -> None:
    note(f"downloading {PACKAGE} (45 MB)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        run("npm", "pack", PACKAGE, "--pack-destination", folder)
        with tarfile.open(next(folder.glob("*.tgz"))) as package:
            content = package.extractfile(ARCHIVE)
            if content is None:
                raise ToolError(f"{PACKAGE} has no file {ARCHIVE}")
            zipfile.ZipFile(io.BytesIO(content.read())).extractall(folder / "unpacked")
        try:
            (folder / "unpacked").rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
