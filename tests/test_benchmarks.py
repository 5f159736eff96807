"""The benchmark's own arithmetic, and that every operator in it still loads and runs."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.layer.bars import verdicts
from benchmarks.layer.graphs import Traffic, traffic_of
from benchmarks.layer.limits import Limits, compile_limits
from benchmarks.layer.measure import Effort, Point, Samples, Setting, measure_shape
from benchmarks.layer.operators import OURS, operators
from benchmarks.layer.report import render
from benchmarks.layer.results import Record, summarize
from benchmarks.layer.shapes import MAIN_SHAPE, Shape

from mote_runtime import get_library_path

LIMITS = Limits(
    dram_bytes_s={1: 1e10, 2: 2e10},
    integer_mul_adds_s={1: 1e11, 2: 2e11},
    float_mul_adds_s={1: 1e10, 2: 2e10},
    details={"integer_isa": "any", "float_isa": "any"},
)
ABOUT = {
    "cpu": "any", "architecture": "any", "cores": 2, "l3_bytes": 1 << 25, "onnxruntime": "any", "quick": True,
    "minutes": 1, "date": "today", "cores_busy_elsewhere": 0.0,
}  # fmt: skip


def record(operator: str, tokens: int, threads: int, milliseconds: float) -> Record:
    samples = Samples([milliseconds / 1e3] * 3, bytes_per_layer=1e7, layers=2)
    point = Point(MAIN_SHAPE.name, operator, tokens, threads)
    return summarize(point, samples, Traffic(integer_products=MAIN_SHAPE.ffn_weights), LIMITS)


@pytest.mark.parametrize(
    ("name", "bits"), [("ours-2bit-none", 2), ("ours-1.6bit-none", 1.6), ("qmoe2-none", 2.25), ("qmoe4-none", 4.25)]
)
def test_an_expert_has_the_bytes_that_its_format_says(name: str, bits: float) -> None:
    layer = next(one.layer for one in operators() if one.name == name)
    shape = Shape("both divisible by 16, 20 and 128", 1280, 2560)
    assert traffic_of(shape, layer).expert_bytes == pytest.approx(shape.ffn_weights * bits / 8)


@pytest.mark.parametrize(("shared", "bits"), [("int4", 4.125), ("int8", 8), ("bf16", 16)])
def test_the_shared_expert_is_read_in_every_call(shared: str, bits: float) -> None:
    traffic = {one.shared: traffic_of(MAIN_SHAPE, one.layer) for one in operators() if one.routed == "2bit"}
    added = traffic[shared].always_bytes - traffic["none"].always_bytes
    assert added == pytest.approx(MAIN_SHAPE.ffn_weights * bits / 8, rel=0.003)  # int8: one scale a row beside


def test_limit_is_the_slower_of_memory_and_arithmetic() -> None:
    traffic = Traffic(integer_products=10**8, float_products=10**7)
    assert LIMITS.seconds(1e9, traffic, 1, 1) == pytest.approx(0.1)
    assert LIMITS.seconds(1e3, traffic, 10, 2) == pytest.approx(0.01)


def test_bars_compare_with_the_best_peer() -> None:
    records = [record("ours-2bit-none", 1, 2, 1.0), record("qmoe2-none", 1, 2, 1.2), record("qmoe4-none", 1, 2, 2.0)]
    first, *others = verdicts(records, {})
    assert first.reached is False
    assert first.found.startswith("1.20x")
    assert all(verdict.reached is None for verdict in others)
    assert verdicts([*records, record("ours-1.6bit-none", 1, 2, 0.9)], {})[0].reached is True


def test_the_dram_bar_compares_with_what_dram_gave_beside_it() -> None:
    slow = record("ours-2bit-int4", 1, 2, 1.2)
    found = {verdict.bar: verdict for verdict in verdicts([replace(slow, dram_ms=1.1, memory_limit_ms=0.5)], {})}
    verdict = found["whole layer, int4 shared expert, 1 token, 2 threads, DRAM"]
    assert verdict.reached is True
    assert verdict.found.startswith("1.09x")
    assert "2.40x at the best of this run" in verdict.found
    assert not any(one.reached for one in verdicts([replace(slow, dram_ms=1.0, memory_limit_ms=0.5)], {}))


@pytest.mark.long
def test_every_operator_runs_and_is_reported(tmp_path: Path) -> None:
    shape = Shape(MAIN_SHAPE.name, 128, 256)
    chosen = list(operators())
    effort = Effort(turns=1, min_rounds=1, min_seconds=0)
    setting = Setting(effort, 1 << 10, get_library_path("onnxruntime"), compile_limits(tmp_path))
    samples = measure_shape(tmp_path, shape, chosen, [1, 32], [1], setting, lambda text: None)
    assert [point for point, found in samples.items() if found.failure] == []
    assert len(samples) == 2 * len(chosen)
    traffic = {one.name: traffic_of(shape, one.layer) for one in chosen}
    records = [summarize(point, found, traffic[point.operator], LIMITS) for point, found in samples.items()]
    # What DRAM gave stands beside each decode point of ours, and nowhere else.
    assert {one.operator for one in records if one.dram_ms} == {one.name for one in chosen if one.side == OURS}
    assert all(one.tokens == 1 for one in records if one.dram_ms)
    text = render(ABOUT, LIMITS, records, {}, tmp_path / "arm_static.json")
    assert all(f"**{one.label}**" in text for one in chosen if one.side == OURS)
