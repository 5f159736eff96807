"""What a point comes to: medians, spread, and its share of what the machine can do."""

from dataclasses import dataclass

import numpy as np

from .graphs import Traffic
from .limits import Limits
from .measure import Point, Samples


@dataclass(frozen=True)
class Record:
    shape: str
    operator: str
    tokens: int
    threads: int
    rounds: int
    layers: int
    #: Milliseconds for a layer.
    median_ms: float
    p10_ms: float
    p90_ms: float
    min_ms: float
    bytes_read: float
    mul_adds: int
    limit_ms: float
    memory_limit_ms: float
    #: The time to read these bytes from DRAM as fast as it went beside the measurement (medians); 0 if it was not measured.
    dram_ms: float = 0.0
    failure: str = ""


def summarize(point: Point, samples: Samples, traffic: Traffic, limits: Limits) -> Record:
    products = point.tokens * (traffic.integer_products + traffic.float_products)
    if samples.failure:
        return Record(
            **vars(point), rounds=0, layers=0, median_ms=0, p10_ms=0, p90_ms=0, min_ms=0, bytes_read=0,
            mul_adds=products, limit_ms=0, memory_limit_ms=0, failure=samples.failure,
        )  # fmt: skip
    p10, median, p90 = (float(value) * 1e3 for value in np.percentile(samples.layer_seconds, (10, 50, 90)))
    return Record(
        **vars(point),
        rounds=len(samples.layer_seconds),
        layers=samples.layers,
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        min_ms=min(samples.layer_seconds) * 1e3,
        bytes_read=samples.bytes_per_layer,
        mul_adds=products,
        limit_ms=limits.seconds(samples.bytes_per_layer, traffic, point.tokens, point.threads) * 1e3,
        memory_limit_ms=limits.memory_seconds(samples.bytes_per_layer, point.threads) * 1e3,
        dram_ms=samples.bytes_per_layer / float(np.median(samples.dram_bytes_s)) * 1e3 if samples.dram_bytes_s else 0.0,
    )
