"""The choice of the next token."""

import numpy as np
import pytest

from mote_runtime.errors import BackendError, MoteError
from mote_runtime.sampling import Sampler


def logits(*probabilities: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float32))


def test_greedy_takes_the_lowest_id_of_equal_ones() -> None:
    assert Sampler()(np.array([0, 3, 3, -np.inf], np.float32)) == 1


def test_draws_follow_the_softmax_at_a_temperature() -> None:
    sampler = Sampler(temperature=0.5, seed=1)
    counts = np.bincount([sampler(logits(0.1, 0.2, 0.7)) for _ in range(4000)], minlength=3)
    squared = np.array([0.01, 0.04, 0.49])  # a temperature of 1/2 squares the probabilities
    assert np.abs(counts / 4000 - squared / squared.sum()).max() < 0.02


def test_top_p_draws_from_the_nucleus_only() -> None:
    sampler = Sampler(temperature=1.0, top_p=0.75, seed=1)
    drawn = [sampler(logits(0.05, 0.4, 0.05, 0.3, 0.2)) for _ in range(500)]
    assert set(drawn) == {1, 3, 4}
    assert {Sampler(1.0, 0.4, seed)(logits(0.05, 0.45, 0.5)) for seed in range(50)} == {2}


def test_top_p_equals_sorting_the_whole_vocabulary() -> None:
    random = np.random.default_rng(2)
    for top_p in (1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9):
        values = (random.standard_normal(1000) * 4).astype(np.float32)
        probabilities = np.exp(values.astype(np.float64) - values.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")
        nucleus = order[: int(np.searchsorted(probabilities[order].cumsum(), top_p)) + 1]
        sampler = Sampler(1.0, top_p, seed=3)
        drawn = {sampler(values) for _ in range(300)}
        assert drawn <= set(nucleus.tolist())
        assert len(drawn) > 1 or len(nucleus) == 1


def test_a_seed_repeats_the_choices() -> None:
    values = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    first, second = (Sampler(1.0, 0.9, seed=9) for _ in range(2))
    assert [first(values) for _ in range(20)] == [second(values) for _ in range(20)]


def test_a_tiny_temperature_is_greedy() -> None:
    assert Sampler(temperature=1e-300)(np.array([1.0, 2.0], np.float32)) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; expected"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0; expected"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": 0.5}, "has no effect at temperature 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], expected: str) -> None:
    with pytest.raises(MoteError, match=expected):
        Sampler(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_logits_that_mean_nothing_are_refused(values: list[float]) -> None:
    with pytest.raises(BackendError, match="expected a finite number"):
        Sampler()(np.array(values, np.float32))
