"""Small samples: what they show, and whether two of them differ (docs/profiling.md, Statistics)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

SIGNIFICANCE = 0.01
CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 10_000
_EXACT_LIMIT = 20  # both samples together; up to here the permutations are counted

Verdict = Literal["faster", "slower", "less", "more", "no difference shown"]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Summary:
    """A sample in numbers; the standard deviation is that of a sample (n - 1), and None for a single value."""

    n: int
    mean: float
    standard_deviation: float | None
    median: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How B differs from A.

    Attributes:
        ratio: median of B over median of A; None where that of A is 0 or next to it.
        interval: bootstrap interval of the ratio at 95 %; None where a sample has a single value.
        effect: the chance that a value of B is greater than one of A, ties counted half: 0.5 means no difference.
        p: of the Mann-Whitney test, two-sided; None where a sample has a single value.
    """

    n_a: int
    n_b: int
    median_a: float
    median_b: float
    ratio: float | None
    interval: tuple[float, float] | None
    effect: float
    p: float | None

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the test says so, and the interval excludes that there is none."""
        if self.p is None or self.interval is None:
            return False
        return self.p < SIGNIFICANCE and not self.interval[0] <= 1 <= self.interval[1]


def summarize(values: Sequence[float]) -> Summary:
    """At least one value."""
    array = np.asarray(values, np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else None
    return Summary(
        len(array), float(array.mean()), deviation, float(np.median(array)), float(array.min()), float(array.max())
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Linearly interpolated between the two values around it, as numpy does by default."""
    return float(np.percentile(np.asarray(values, np.float64), percent))


def compare(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Difference:
    """Compare two samples of at least one value each; `seed` repeats the bootstrap."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    median_a, median_b = float(np.median(first)), float(np.median(second))
    single = min(len(first), len(second)) < 2
    ratio = _ratio(median_b, median_a)
    return Difference(
        len(first),
        len(second),
        median_a,
        median_b,
        ratio,
        None if single or ratio is None else _bootstrap_interval(first, second, seed),
        _effect(first, second),
        None if single else mann_whitney_p(first, second),
    )


def _ratio(b: float, a: float) -> float | None:
    ratio = b / a if a else math.inf
    return ratio if math.isfinite(ratio) else None


def _effect(a: Array, b: Array) -> float:
    greater = (b[:, np.newaxis] > a).mean()
    equal = (b[:, np.newaxis] == a).mean()
    return float(greater + equal / 2)


def _bootstrap_interval(a: Array, b: Array, seed: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    draws_a = np.median(a[random.integers(0, len(a), (BOOTSTRAP_RESAMPLES, len(a)))], axis=1)
    draws_b = np.median(b[random.integers(0, len(b), (BOOTSTRAP_RESAMPLES, len(b)))], axis=1)
    ratios = draws_b / np.where(draws_a == 0, np.nan, draws_a)
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.nanpercentile(ratios, [tail, 100 - tail])
    return float(low), float(high)


def mann_whitney_p(a: Array, b: Array) -> float:
    """Two-sided p of the rank-sum test: exact by counting all splits of small samples, ties included, else normal."""
    pooled = np.concatenate([a, b])
    ranks = _ranks(pooled)
    statistic, expected = ranks[: len(a)].sum(), len(a) * (len(pooled) + 1) / 2
    if len(pooled) <= _EXACT_LIMIT:
        return _exact_p(ranks, len(a), abs(statistic - expected))
    _, counts = np.unique(pooled, return_counts=True)
    n = len(pooled)
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / (n * (n - 1))
    variance = len(a) * len(b) / 12 * ((n + 1) - ties)
    if variance <= 0:
        return 1.0
    z = max(abs(statistic - expected) - 0.5, 0) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def _ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the middle of theirs."""
    unique, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middles: Array = ends - (counts - 1) / 2
    assert len(unique) == len(middles)
    return middles[inverse]


def _exact_p(ranks: Array, size: int, distance: float) -> float:
    """The share of all choices of `size` ranks whose sum is at least `distance` away from the mean of the sums."""
    doubled = np.rint(ranks * 2).astype(np.int64)  # middles of ranks are halves
    total = int(doubled.sum())
    # ways[k][s]: choices of k ranks with the (doubled) sum s, counted rank by rank.
    ways = np.zeros((size + 1, total + 1), np.float64)
    ways[0, 0] = 1
    for rank in doubled:
        for count in range(size, 0, -1):
            ways[count, rank:] += ways[count - 1, : total + 1 - rank]
    sums = np.arange(total + 1)
    far = np.abs(sums / 2 - size * (len(ranks) + 1) / 2) >= distance - 1e-9
    return float(ways[size, far].sum() / ways[size].sum())
