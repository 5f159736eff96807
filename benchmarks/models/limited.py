"""The same answer with all memory there is, and with a share of the size of the model's files."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from mote_runtime.errors import MoteError
from mote_runtime.profile.memory_limit import run_limited

from . import children
from .shapes import RUNTIME, Target

SHARE = 0.6
LEAST = 1 << 30  # or Python and its libraries would not start, whatever the model; models of 1.5B and more lie above it
TOKENS = 12
SECONDS = 1800.0


def measure(folder: Path, target: Target, log: Path) -> dict[str, Any]:
    """Runs an export twice; a dictionary with `failure` if one of the two fails, or no limit can be set."""
    command = children.python("benchmarks.models.worker", folder, "--runtime", RUNTIME[target], "--tokens", TOKENS)
    free = children.run(command, log)
    if free.failure:
        return {"failure": free.failure}
    files = list(folder.iterdir())
    size = sum(path.stat().st_size for path in files)
    start = time.perf_counter()
    try:
        found = run_limited(
            command, max(int(SHARE * size), LEAST), cold=files, timeout=SECONDS, environment=children.environment()
        )
    except (MoteError, OSError, subprocess.TimeoutExpired) as error:
        return {"failure": f"with limited memory: {error}"}
    seconds = time.perf_counter() - start
    if found.returncode:
        said = "ended by the system for lack of memory" if found.killed else found.stderr.strip()[-300:]
        return {"failure": f"with limited memory: exit status {found.returncode}: {said}"}
    tokens = [json.loads(text.splitlines()[-1]) for text in (free.output, found.stdout)]
    return {
        "file_bytes": size,
        "limit": found.limit_bytes,
        "peak": found.peak_bytes,
        "seconds": seconds,
        "free_seconds": free.seconds,
        "tokens": len(tokens[0]),
        "same": tokens[0] == tokens[1],
    }
