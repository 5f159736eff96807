"""Runs a command to its end and watches its memory."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import ROOT

INTERVAL_S = 0.02
_FIELDS = re.compile(r"^(RssAnon|RssFile|VmHWM):\s+(\d+) kB$", re.MULTILINE)
FAILURE_LINES = 3


@dataclass(frozen=True)
class Run:
    """Of a child process, without its own children.

    Attributes:
        peak: greatest resident bytes of any moment, as the kernel counted them; pages of mapped files count.
        anonymous, file: greatest of each kind among samples of 20 ms; not of the same moment.
        failure: the last lines of what it said, or ""; then the figures say nothing.
    """

    seconds: float
    peak: int
    anonymous: int
    file: int
    output: str
    failure: str = ""


def run(command: Sequence[str], log: Path) -> Run:
    """Runs it in the project's folder; its messages go to `log`, which is replaced."""
    log.parent.mkdir(parents=True, exist_ok=True)
    output_path = log.with_suffix(".out")
    start = time.perf_counter()
    with log.open("wb") as messages, output_path.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=messages, cwd=ROOT, env=environment())
        try:
            seen, status, usage = _watch(child.pid)
        except BaseException:
            child.kill()
            raise
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)  # it is waited for already
    text = output_path.read_text(encoding="utf-8", errors="replace")
    output_path.unlink()
    failure = ""
    if child.returncode:
        said = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())[-FAILURE_LINES:]
        failure = f"exit status {child.returncode}: {' / '.join(said)}"
    # The kernel's account of a child begins with what its parent had: below that it says nothing about the child.
    is_own = usage > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    peak = usage if is_own else seen["VmHWM"]
    return Run(seconds, peak, seen["RssAnon"], seen["RssFile"], text, failure)


def _watch(pid: int) -> tuple[dict[str, int], int, int]:
    """Greatest bytes of each kind until the process ends, its wait status, and its peak by the kernel's account."""
    seen = {"RssAnon": 0, "RssFile": 0, "VmHWM": 0}
    status_file = Path(f"/proc/{pid}/status")
    while True:
        try:
            found = dict(_FIELDS.findall(status_file.read_text()))
        except OSError:
            found = {}
        for name, value in found.items():
            seen[name] = max(seen[name], int(value) << 10)
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return seen, status, usage.ru_maxrss << 10
        time.sleep(INTERVAL_S)


def python(module: str, *arguments: object) -> list[str]:
    """The command of a module in this package, or of an installed one."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def environment() -> dict[str, str]:
    """Of all children: this package is found from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
