"""What was measured of one runtime in one process: the record, written by mote-profile's own workers and by `mote-runner`.

Times are milliseconds since the epoch, monotonic within the process, under the names of ExecuTorch's LLM stats.
"""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from mote_runtime.backends import RUNTIMES
from mote_runtime.generation import Timings
from mote_runtime.profile.strict import Fields, ProfileError, shown

FORMAT = "mote-profile"
FORMAT_VERSION = 1

MAX_REPETITIONS = 10_000
MAX_TOKENS = 1 << 20
MAX_SAMPLES = 1 << 21
MAX_BYTES = 1 << 50
MAX_MS = 1e14  # the year 5138
MAX_THREADS = 1024
MAX_JOULES = 1e9

_MARKS = (
    "inference_start_ms",
    "token_encode_end_ms",
    "image_encode_end_ms",
    "prompt_eval_end_ms",
    "first_token_ms",
    "inference_end_ms",
)
_ROUNDING_MS = 2e-3  # marks are written to the microsecond


@dataclass(frozen=True, slots=True)
class Repetition:
    """One answer. `token_ms`: when each generated token was known. `energy_joules` of the whole processor package."""

    inference_start_ms: float
    token_encode_end_ms: float
    image_encode_end_ms: float
    prompt_eval_end_ms: float
    first_token_ms: float
    inference_end_ms: float
    aggregate_sampling_time_ms: float
    prompt_tokens: int
    generated_tokens: int
    decode_steps: int
    prefill_token_per_sec: float
    decode_token_per_sec: float
    token_ids: tuple[int, ...]
    token_ms: tuple[float, ...]
    energy_joules: float | None = None

    @classmethod
    def of(
        cls, timings: Timings, token_ids: tuple[int, ...], token_ms: tuple[float, ...], energy: float | None
    ) -> "Repetition":
        """From the timings of a finished answer."""
        values = timings.to_dict()
        marks = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**marks, token_ids=token_ids, token_ms=token_ms, energy_joules=energy)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        document: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        document["token_ids"] = list(self.token_ids)
        document["token_ms"] = [round(value, 3) for value in self.token_ms]
        if self.energy_joules is None:
            del document["energy_joules"]
        return document | {"SCALING_FACTOR_UNITS_PER_SECOND": 1000}

    @classmethod
    def from_json(cls, document: object, name: str) -> "Repetition":
        """Check and read one; raises ProfileError."""
        fields = Fields(document, name)
        marks = {mark: fields.number(mark, 0, MAX_MS) for mark in _MARKS}
        generated = fields.integer("generated_tokens", 0, MAX_TOKENS)
        reached = [
            mark for mark in _MARKS if generated or mark != "first_token_ms"
        ]  # without a token there is no first
        for first, second in itertools.pairwise(reached):
            if marks[first] > marks[second] + _ROUNDING_MS:
                raise ProfileError(
                    f"{name}: {second} is {marks[second]:.3f}; expected at least {first}, which is {marks[first]:.3f}"
                )
        ids = fields.integers("token_ids", 0, 1 << 31, MAX_TOKENS)
        token_ms = fields.numbers("token_ms", 0, MAX_MS, MAX_TOKENS)
        if not len(ids) == len(token_ms) == generated:
            raise ProfileError(
                f"{name}: generated_tokens is {generated}, but there are {len(ids)} token_ids and {len(token_ms)} token_ms"
            )
        if any(a > b + _ROUNDING_MS for a, b in itertools.pairwise(token_ms)):
            raise ProfileError(f"{name}: token_ms goes back in time; expected an ascending list")
        energy = fields.number("energy_joules", 0, MAX_JOULES) if fields.has("energy_joules") else None
        return cls(
            marks["inference_start_ms"],
            marks["token_encode_end_ms"],
            marks["image_encode_end_ms"],
            marks["prompt_eval_end_ms"],
            marks["first_token_ms"],
            marks["inference_end_ms"],
            fields.number("aggregate_sampling_time_ms", 0, MAX_MS),
            fields.integer("prompt_tokens", 1, MAX_TOKENS),
            generated,
            fields.integer("decode_steps", 0, MAX_TOKENS),
            fields.number("prefill_token_per_sec", 0, 1e12),
            fields.number("decode_token_per_sec", 0, 1e12),
            ids,
            token_ms,
            energy,
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory over time: samples of (ms, anonymous bytes, file-backed bytes), and the greatest of each."""

    samples: tuple[tuple[float, int, int], ...]
    peak_anonymous_bytes: int
    peak_file_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "samples": [[round(when, 3), anonymous, file] for when, anonymous, file in self.samples],
            "peak_anonymous_bytes": self.peak_anonymous_bytes,
            "peak_file_bytes": self.peak_file_bytes,
        }

    @classmethod
    def from_json(cls, fields: Fields) -> "Memory":
        """Check and read it; raises ProfileError."""
        samples = []
        for row in fields.rows("samples", MAX_SAMPLES):
            sample = Fields({"sample": row}, fields.name).numbers("sample", 0, MAX_MS, 3)
            if len(sample) != 3 or max(sample[1:]) > MAX_BYTES:
                raise ProfileError(f"{fields.name}: a sample is {shown(row)}; expected [ms, bytes, bytes]")
            samples.append((sample[0], int(sample[1]), int(sample[2])))
        return cls(
            tuple(samples),
            fields.integer("peak_anonymous_bytes", 0, MAX_BYTES),
            fields.integer("peak_file_bytes", 0, MAX_BYTES),
        )


@dataclass(frozen=True, slots=True)
class Record:
    """Everything measured of one runtime in one process.

    `threads` and `cores` are None where they were left to the runtime and the system, `isa` where the operators did not
    say which instruction set they chose. `monotonic_to_epoch_ms` is the epoch's milliseconds minus CLOCK_MONOTONIC's.
    `load_ms` holds the loading times of further processes that did nothing else. `num_images` of the question is None where
    the record does not say.
    """

    tool: str
    runtime: str
    runtime_version: str
    isa: str | None
    threads: int | None
    cores: tuple[int, ...] | None
    warmup: int
    model_load_start_ms: float
    model_load_end_ms: float
    repetitions: tuple[Repetition, ...]
    memory: Memory
    monotonic_to_epoch_ms: float | None = None
    load_ms: tuple[float, ...] = field(default=())
    num_images: int | None = None

    def with_loads(self, load_ms: tuple[float, ...]) -> "Record":
        """The record with the loading times of further processes."""
        return replace(self, load_ms=load_ms)

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **plain,
            "cores": None if self.cores is None else list(self.cores),
            "repetitions": [repetition.to_json() for repetition in self.repetitions],
            "memory": self.memory.to_json(),
            "load_ms": list(self.load_ms),
        }

    @classmethod
    def from_json(cls, document: object, name: str = "the record") -> "Record":
        """Check and read a record, which may come from anywhere; raises ProfileError that names the field."""
        fields = Fields(document, name)
        fields.choice("format", (FORMAT,))
        fields.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
        start, end = (fields.number(f"model_load_{mark}_ms", 0, MAX_MS) for mark in ("start", "end"))
        if start > end + _ROUNDING_MS:
            raise ProfileError(
                f"{name}: model_load_end_ms is {end:.3f}, before model_load_start_ms, which is {start:.3f}"
            )
        repetitions = fields.rows("repetitions", MAX_REPETITIONS)
        return cls(
            tool=fields.text("tool", 200),
            runtime=fields.choice("runtime", tuple(RUNTIMES)),
            runtime_version=fields.text("runtime_version", 100),
            isa=fields.optional_text("isa", 100),
            threads=fields.integer("threads", 1, MAX_THREADS) if fields.has("threads") else None,
            cores=fields.integers("cores", 0, 1 << 16, 1 << 12) if fields.has("cores") else None,
            warmup=fields.integer("warmup", 0, MAX_REPETITIONS),
            model_load_start_ms=start,
            model_load_end_ms=end,
            repetitions=tuple(
                Repetition.from_json(each, f"{name}: repetition {index}") for index, each in enumerate(repetitions)
            ),
            memory=Memory.from_json(fields.section("memory")),
            monotonic_to_epoch_ms=(
                fields.number("monotonic_to_epoch_ms", -MAX_MS, MAX_MS) if fields.has("monotonic_to_epoch_ms") else None
            ),
            load_ms=fields.numbers("load_ms", 0, MAX_MS, MAX_REPETITIONS) if fields.has("load_ms") else (),
            num_images=fields.integer("num_images", 0, 1 << 16) if fields.has("num_images") else None,
        )
