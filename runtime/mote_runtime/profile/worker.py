"""A process of its own for one model in one runtime, so that loading and memory are clean.

    python -m mote_runtime.profile.worker

reads one JSON object a line from stdin and answers each with one on stdout: first the settings, then `{"do": "repeat"}` as often
as wanted, then `{"do": "record"}`. With `"trace": FOLDER` in the settings it traces one answer into that folder instead.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mote_runtime.backends.base import reason
from mote_runtime.errors import MoteError
from mote_runtime.profile.measure import Subject
from mote_runtime.profile.memory import MemorySampler
from mote_runtime.profile.settings import Settings
from mote_runtime.profile.trace.inner import InnerTrace

PHASES_FILE = "phases.bin"


def main() -> int:
    """Serve one parent until its end of the pipe closes; the exit code is 0 unless the process itself fails."""
    # Libraries print to file 1: what is said to the parent goes through a copy of it.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        job = json.loads(sys.stdin.readline() or "null")
        if job is None:
            return 0
        settings = Settings.from_json(job["settings"])
        with MemorySampler() as sampler:
            if job["trace"] is not None:
                _send(replies, _trace(settings, sampler, Path(job["trace"])))
            else:
                _serve(settings, sampler, replies)
    except MoteError as error:
        _send(replies, {"error": str(error)})
    except (KeyboardInterrupt, BrokenPipeError):
        return 1
    except Exception as error:  # the parent says it in one sentence; it cannot see this process's traceback
        _send(replies, {"error": f"internal error while measuring: {type(error).__name__}: {reason(error)}."})
    return 0


def _send(replies: TextIO, message: dict[str, Any]) -> None:
    json.dump(message, replies)
    replies.write("\n")
    replies.flush()


def _serve(settings: Settings, sampler: MemorySampler, replies: TextIO) -> None:
    subject = Subject(settings, sampler, None, traced=False)
    _send(replies, {"loaded": subject.load_end_ms - subject.load_start_ms})
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "repeat":
            repetition = subject.repeat(keep=command["keep"])
            _send(replies, {"decode_token_per_sec": repetition.decode_token_per_sec})
        else:
            _send(replies, {"record": subject.record().to_json()})
    subject.close()


def _trace(settings: Settings, sampler: MemorySampler, folder: Path) -> dict[str, Any]:
    subject = Subject(settings, sampler, folder if "operators" in settings.trace_sources else None, traced=True)
    # Without a plugin the model has none of our operators, and the plugin could not even be loaded beside every runtime.
    phases = "phases" in settings.trace_sources and subject.manifest.plugin_library is not None
    for _ in range(settings.warmup):
        subject.repeat(keep=False)
    inner = InnerTrace(subject.manifest.target) if phases else None  # type: ignore[arg-type]
    if inner is not None:
        inner.start()
    answer = subject.repeat(keep=True)
    names: tuple[str, ...] = ()
    dropped = 0
    if inner is not None:
        events, dropped = inner.stop()
        names = inner.phase_names
        np.asarray(events).tofile(folder / PHASES_FILE)
    assert subject.observed is not None
    files = subject.observed.end_profile()
    marks = subject.marks(answer)
    record = subject.record()
    subject.close()
    return {
        "record": record.to_json(),
        "files": {part: str(path) for part, path in files.items()},
        "phase_names": list(names),
        "dropped": dropped,
        "marks": [getattr(marks, name) for name in marks.__dataclass_fields__],
        "calls": [[call.part.value, call.begin_ns, call.end_ns, call.tokens] for call in subject.observed.calls],
    }


if __name__ == "__main__":
    sys.exit(main())
