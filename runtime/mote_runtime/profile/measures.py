"""What is derived from a record: each measure with its unit, which way is better, and a value for each repetition."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mote_runtime.profile.record import Record, Repetition
from mote_runtime.profile.statistics import Summary, percentile, summarize

PERCENTILES = (50, 95, 99)
GREATEST_SLOWDOWN = 1.05  # of a traced decode step; beyond it phases are recorded once more, and it is said

_LEAST_STEP_MS = 1e-6  # no clock tells less, and a ratio to it would be no number

Better = Literal["less", "more"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that users quote; `values` gives one for each repetition (or load, or process), none where it does not apply."""

    key: str
    title: str
    unit: str
    better: Better
    values: Callable[[Record], Sequence[float]]


def _each(function: Callable[[Repetition], float | None]) -> Callable[[Record], Sequence[float]]:
    return lambda record: [value for each in record.repetitions if (value := function(each)) is not None]


def _image_encode(record: Record) -> list[float]:
    """None for a question without a picture: then the mark stands at once behind the one before."""
    times = [each.image_encode_end_ms - each.token_encode_end_ms for each in record.repetitions]
    if record.num_images is None:
        return times if times and min(times) > _NO_IMAGE_MS else []
    return times if record.num_images else []


_NO_IMAGE_MS = 0.05


def inter_token_ms(repetition: Repetition) -> list[float]:
    """Times from one token to the next, one less than there are tokens."""
    return [after - before for before, after in itertools.pairwise(repetition.token_ms)]


def _inter_token(percent: float) -> Callable[[Repetition], float | None]:
    def value(repetition: Repetition) -> float | None:
        times = inter_token_ms(repetition)
        return percentile(times, percent) if times else None

    return value


def _first_token(repetition: Repetition) -> float | None:
    return repetition.first_token_ms - repetition.inference_start_ms if repetition.generated_tokens else None


MEASURES = (
    Measure(
        "load_ms",
        "load",
        "ms",
        "less",
        lambda record: [record.model_load_end_ms - record.model_load_start_ms, *record.load_ms],
    ),
    Measure("image_encode_ms", "image encode", "ms", "less", _image_encode),
    Measure(
        "prompt_eval_ms",
        "prompt through the decoder",
        "ms",
        "less",
        _each(lambda each: each.prompt_eval_end_ms - each.image_encode_end_ms),
    ),
    Measure("time_to_first_token_ms", "time to first token", "ms", "less", _each(_first_token)),
    Measure("prefill_token_per_sec", "prefill", "tokens/s", "more", _each(lambda each: each.prefill_token_per_sec)),
    Measure(
        "decode_token_per_sec",
        "decode",
        "tokens/s",
        "more",
        _each(lambda each: each.decode_token_per_sec if each.decode_steps else None),
    ),
    Measure("inter_token_p50_ms", "inter-token latency, p50", "ms", "less", _each(_inter_token(50))),
    Measure("inter_token_p95_ms", "inter-token latency, p95", "ms", "less", _each(_inter_token(95))),
    Measure(
        "peak_anonymous_bytes",
        "peak memory, anonymous",
        "bytes",
        "less",
        lambda record: [record.memory.peak_anonymous_bytes],
    ),
    Measure(
        "peak_file_bytes", "peak memory, file-backed", "bytes", "less", lambda record: [record.memory.peak_file_bytes]
    ),
    Measure(
        "joules_per_token",
        "energy per token",
        "J",
        "less",
        _each(
            lambda each: (
                each.energy_joules / each.generated_tokens
                if each.energy_joules is not None and each.generated_tokens
                else None
            )
        ),
    ),
)


def summary(record: Record) -> dict[str, Any]:
    """The derived figures of a record for `profile.json`: one object for each measure, null where there is no value.

    `inter_token_ms` is over the times of all repetitions together, with its percentiles.
    """
    result: dict[str, Any] = {}
    for measure in MEASURES:
        values = measure.values(record)
        result[measure.key] = _rounded(summarize(values)) if values else None
    times = [time for each in record.repetitions for time in inter_token_ms(each)]
    result["inter_token_ms"] = (
        _rounded(summarize(times)) | {f"p{percent}": round(percentile(times, percent), 4) for percent in PERCENTILES}
        if times
        else None
    )
    return result


def _rounded(values: Summary) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(values).items()}


def slowdown(measured: Record, traced: Record | None) -> float | None:
    """How many times as long a median decode step took while it was traced; None where either has no steps."""
    medians = []
    for record in (measured, traced):
        times = [time for each in (record.repetitions if record else ()) for time in inter_token_ms(each)]
        if not times:
            return None
        medians.append(percentile(times, 50))
    return round(medians[1] / medians[0], 4) if medians[0] >= _LEAST_STEP_MS else None
