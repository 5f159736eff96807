"""llama.cpp beside us: a dense model of the same shape in Q4_0, in the same run.

llama.cpp comes built for all x86-64 and ARM CPUs in the npm package of node-llama-cpp, which chooses the best of its libraries;
llama_cpp.mjs asks it. Without npm, Node.js or their registry the row says so.
"""

import json
import platform
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

from . import children, gguf
from .rows import Setting, dram_now
from .shapes import TEXT_TOKENS, THREADS, Shape

PACKAGE, PACKAGE_VERSION = "node-llama-cpp", "3.22.1"
BINARIES = {"x86_64": "@node-llama-cpp/linux-x64", "aarch64": "@node-llama-cpp/linux-arm64"}
SCRIPT = Path(__file__).with_name("llama_cpp.mjs")
REPEATS = 3
INSTALL_SECONDS = 600


def install(folder: Path) -> str:
    """Into `folder`, without the packages' own scripts and without what GPUs want; what went wrong, or ""."""
    if (folder / "node_modules" / PACKAGE).is_dir():
        return ""
    if not shutil.which("npm") or not shutil.which("node"):
        return "Node.js and npm are not installed"
    binaries = BINARIES.get(platform.machine())
    if binaries is None:
        return f"{PACKAGE} has no library for {platform.machine()}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        "npm",
        "install",
        "--ignore-scripts",
        "--omit=optional",
        "--no-audit",
        "--no-fund",
        "--prefix",
        str(folder),
    ]
    command += [f"{name}@{PACKAGE_VERSION}" for name in (PACKAGE, binaries)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"npm was not done after {INSTALL_SECONDS} s"
    return "" if done.returncode == 0 else f"npm failed: {' / '.join(done.stderr.strip().splitlines()[-2:])}"


def measure(setting: Setting, shape: Shape) -> dict[str, Any]:
    """Prefill of the same number of positions as ours, decode after it; `failure` where llama.cpp cannot be had."""
    folder = setting.work / "llama.cpp"
    if failure := install(folder):
        return {"failure": failure}
    path = folder / f"{shape.name}.gguf"
    prompt = shape.image_tokens + TEXT_TOKENS
    try:
        size = gguf.write_gguf(shape, path)
        shutil.copy(SCRIPT, folder / SCRIPT.name)  # where it finds what it imports
        before = dram_now(setting)
        command = ["node", folder / SCRIPT.name, path, THREADS, prompt, setting.steps, REPEATS]
        run = children.run([str(part) for part in command], setting.log(f"{shape.name}_llama.cpp"))
        if run.failure:
            return {"failure": run.failure}
        after = dram_now(setting)
    finally:
        path.unlink(missing_ok=True)
    found = json.loads(run.output.splitlines()[-1])
    return {
        "release": found["release"],
        "package": f"{PACKAGE} {found['package']}",
        "file_bytes": size,
        "bytes_per_token": gguf.bytes_per_token(shape),
        "prompt_tokens": prompt,
        "prefill_tokens_s": prompt / statistics.median(found["prefills"]),
        "step_seconds": statistics.median(found["steps"]),
        "open_seconds": found["open_seconds"],
        "anonymous": run.anonymous,
        "file": run.file,
        "dram_bytes_s": [before, after],
    }
