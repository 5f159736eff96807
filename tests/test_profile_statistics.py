"""The statistics of mote-profile: verdicts that can be relied on, from few values."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mote_runtime.profile.comparison import compare_records, slower
from mote_runtime.profile.measures import MEASURES, inter_token_ms, summary
from mote_runtime.profile.record import Memory, Record, Repetition
from mote_runtime.profile.statistics import compare, mann_whitney_p, percentile, summarize
from mote_runtime.profile.strict import ProfileError


def record(step_ms: list[float], *, load: float = 100.0, tokens: int = 9) -> Record:
    """A record whose repetitions decode at the given steady pace, one after the other."""
    repetitions = []
    for number, step in enumerate(step_ms):
        start = 1000.0 + 10_000 * number
        marks = [start, start + 1, start + 6, start + 16, start + 17]
        times = tuple(start + 17 + step * index for index in range(tokens))
        rates = 32 / 0.016, (tokens - 1) / (step * (tokens - 1) / 1e3)
        repetitions.append(
            Repetition(*marks, times[-1] + 0.5, 0.1, 32, tokens, tokens - 1, *rates, tuple(range(tokens)), times)
        )
    memory = Memory(((0.0, 1, 2), (1.0, 5, 6)), 5, 6)
    return Record("test", "onnxruntime", "1", None, 2, None, 1, 0.0, load, tuple(repetitions), memory)


@pytest.mark.parametrize(("size_a", "size_b"), [(2, 2), (3, 5), (5, 5), (10, 10), (7, 12)])
@pytest.mark.parametrize("digits", [0, 1, 6])
def test_small_samples_have_the_exact_p(size_a: int, size_b: int, digits: int) -> None:
    """Also with ties, which rounding makes: counted by going through all splits."""
    random = np.random.default_rng(size_a * 100 + size_b + digits)
    a, b = random.normal(size=size_a).round(digits), (random.normal(size=size_b) + 0.5).round(digits)
    found = mann_whitney_p(a, b)
    if len(np.unique([*a, *b])) == size_a + size_b:
        assert found == pytest.approx(stats.mannwhitneyu(a, b, method="exact").pvalue, abs=1e-12)
    ranks = stats.rankdata([*a, *b])
    middle = size_a * (size_a + size_b + 1) / 2
    sums = np.array([sum(each) for each in itertools.combinations(ranks, size_a)])
    assert found == pytest.approx(
        np.mean(np.abs(sums - middle) >= abs(ranks[:size_a].sum() - middle) - 1e-9), abs=1e-12
    )


def test_large_samples_have_the_normal_p_with_ties() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=60).round(1), (random.normal(size=45) + 0.4).round(1)
    assert mann_whitney_p(a, b) == pytest.approx(stats.mannwhitneyu(a, b, method="asymptotic").pvalue, rel=1e-9)
    assert mann_whitney_p(np.ones(30), np.ones(30)) == 1.0


def test_equal_samples_show_no_difference_and_seldom_by_chance() -> None:
    random = np.random.default_rng(2)
    shown = sum(compare(random.normal(100, 5, 10), random.normal(100, 5, 10)).shown for _ in range(60))
    assert shown <= 3  # at the level of 1 % it is 0 or 1
    assert not compare([5.0] * 10, [5.0] * 10).shown


def test_a_clear_difference_is_shown_with_its_size() -> None:
    random = np.random.default_rng(3)
    difference = compare(random.normal(100, 2, 10), random.normal(120, 2, 10))
    assert difference.shown
    assert difference.ratio == pytest.approx(1.2, abs=0.03)
    assert difference.interval is not None
    assert difference.interval[0] < 1.2 < difference.interval[1]
    assert difference.effect == 1.0


def test_single_values_are_never_shown_to_differ() -> None:
    difference = compare([1.0], [2.0])
    assert (difference.ratio, difference.p, difference.interval, difference.shown) == (2.0, None, None, False)


def test_summaries_are_those_of_numpy() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    found = summarize(values)
    assert (found.n, found.median, found.minimum, found.maximum) == (5, 3.0, 1.0, 9.0)
    assert found.standard_deviation == pytest.approx(np.std(values, ddof=1))
    assert summarize([2.0]).standard_deviation is None
    assert percentile(values, 95) == np.percentile(values, 95)


def test_verdicts_say_which_way_is_better() -> None:
    """Less time and more tokens per second are both `faster`."""
    a = record([10, 10.1, 10.2, 9.9, 10, 10.3], load=100)
    b = record([5, 5.1, 5.2, 4.9, 5, 5.3], load=100)
    rows = {row.measure.key: row for row in compare_records(("a", "b"), a, b).rows}
    assert rows["decode_token_per_sec"].verdict == rows["inter_token_p50_ms"].verdict == "faster"
    assert rows["decode_token_per_sec"].difference.ratio == pytest.approx(2.0, rel=0.05)
    assert rows["load_ms"].verdict == "no difference shown"
    back = compare_records(("b", "a"), b, a)
    assert {row.measure.key: row for row in back.rows}["decode_token_per_sec"].verdict == "slower"
    phrase = slower([back], 40)
    assert phrase is not None
    assert "decode by 50" in phrase.replace("49.", "50.")
    assert slower([back], 200) is None
    assert slower([compare_records(("a", "a"), a, a)], 0) is None


def test_measures_are_those_of_the_marks() -> None:
    one = record([4.0, 6.0])
    values = {measure.key: list(measure.values(one)) for measure in MEASURES}
    assert values["image_encode_ms"] == [5.0, 5.0]
    assert values["prompt_eval_ms"] == [10.0, 10.0]
    assert values["time_to_first_token_ms"] == [17.0, 17.0]
    assert values["inter_token_p50_ms"] == [4.0, 6.0]
    assert values["joules_per_token"] == []
    assert inter_token_ms(one.repetitions[0]) == [4.0] * 8
    document = summary(one)
    assert document["joules_per_token"] is None
    assert document["inter_token_ms"]["p50"] == 5.0
    assert document["inter_token_ms"]["p99"] == 6.0
    assert document["peak_file_bytes"]["median"] == 6
    assert summary(replace(one, num_images=0))["image_encode_ms"] is None
    assert summary(replace(one, num_images=1))["image_encode_ms"]["median"] == 5.0


def test_records_without_answers_cannot_be_compared() -> None:
    with pytest.raises(ProfileError, match="no answers to compare"):
        compare_records(("a", "b"), record([]), record([1.0]))
