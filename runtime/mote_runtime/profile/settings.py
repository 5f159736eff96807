"""What is measured, and how: everything that a worker has to know, as it goes to the worker and into the profile."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

DEFAULT_MAX_NEW_TOKENS = 64
DEFAULT_WARMUP = 1
DEFAULT_REPETITIONS = 10
DEFAULT_LOADS = 3

# What a traced repetition records: the runtime's own profile of all operators, and the phases inside ours.
TRACE_SOURCES = ("operators", "phases")


@dataclass(frozen=True, slots=True)
class Settings:
    """How one export is measured in one runtime.

    Attributes:
        folder: the folder with `mote.json`.
        prompt, image: the question; `image` is a file, "" for the default drawing, None for none.
        max_new_tokens: tokens of an answer.
        ignore_eos: take an end-of-sequence token as any other, so that every answer has that many tokens.
        threads, cores: None leaves the number of threads to the runtime and the cores to the system.
        warmup, repetitions: answers before, and answers measured.
        loads: how many processes load the model for the time of loading, the measured one included.
    """

    folder: str
    prompt: str
    image: str | None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    ignore_eos: bool = True
    threads: int | None = None
    cores: tuple[int, ...] | None = None
    warmup: int = DEFAULT_WARMUP
    repetitions: int = DEFAULT_REPETITIONS
    loads: int = DEFAULT_LOADS
    trace_sources: tuple[str, ...] = field(default=TRACE_SOURCES)

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Settings":
        """From what `to_json` wrote in this process's parent."""
        settings = cls(**document)
        cores = None if settings.cores is None else tuple(settings.cores)
        return replace(settings, cores=cores, trace_sources=tuple(settings.trace_sources))

    @property
    def path(self) -> Path:
        """`folder` as a path."""
        return Path(self.folder)
