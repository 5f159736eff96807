"""A process that opens an export and does as it is told, a word a line, and says after each what it has in memory (JSON)."""

import ctypes
import json
import os
import sys
import zlib
from pathlib import Path

from mote_runtime import load
from mote_runtime.backends import import_backend
from mote_runtime.manifest import Manifest
from mote_runtime.pipeline import Pipeline
from mote_runtime.profile.memory import mapped_files, resident_bytes
from mote_runtime.profile.memory_limit import drop_from_memory

MADV_PAGEOUT = 21
STEPS = 4


def answer(pipeline: Pipeline) -> list[int]:
    """The likeliest tokens, and a sum of all logits' bits, after a prompt of many bytes, so that it meets most experts."""
    logits = pipeline.step_logits(list(range(250)), list(range(STEPS)))
    return [*logits.argmax(axis=1).tolist(), zlib.crc32(logits.tobytes())]


def page_out(folder: Path) -> None:
    """Takes the model's pages from this process, and from memory."""
    library = ctypes.CDLL(None, use_errno=True)
    for address, size in mapped_files(folder).ranges:
        if library.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), MADV_PAGEOUT):
            raise OSError(ctypes.get_errno(), "madvise")
    drop_from_memory(path for path in folder.iterdir() if path.is_file())


def main() -> None:
    folder, *words = sys.argv[1:]
    import_backend(Manifest.read(Path(folder)).target)
    pipeline, tokens, kept = None, None, []
    for word in words or (line.strip() for line in sys.stdin):
        if word == "open":
            pipeline = load(folder, threads=2)
        elif word == "answer":
            assert pipeline is not None
            tokens = answer(pipeline)
        elif word.startswith("prompt="):
            assert pipeline is not None
            tokens = (
                pipeline.step_logits([index % 250 for index in range(int(word.partition("=")[2]))]).argmax(1).tolist()
            )
        elif word.startswith("chunk="):  # as if prompts were cut into pieces of so many
            pipeline._backend._chunk = int(word.partition("=")[2])  # type: ignore[union-attr]
        elif word == "drop":
            page_out(Path(folder))
        elif word == "copy":  # what a program does that does not map
            kept += [path.read_bytes() for path in Path(folder).iterdir()]
        anonymous, file = resident_bytes()
        mapped = mapped_files(Path(folder))
        fields = {name: getattr(mapped, name) for name in ("size", "resident", "share", "anonymous", "locked")}
        print(json.dumps({"anonymous": anonymous, "file": file, "mapped": fields, "tokens": tokens}), flush=True)
    os._exit(0)  # nothing is left to be done in an orderly way


if __name__ == "__main__":
    main()
