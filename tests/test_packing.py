"""L1: the packed layout against its test vectors, and as a round trip."""

import json
from pathlib import Path

import numpy as np
import pytest

from mote_export.packing import pack_2bit, pack_gate_up, unpack_2bit, unpack_gate_up

VECTORS = json.loads((Path(__file__).parent / "vectors" / "layout_2bit_v1.json").read_text())


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vectors(case: dict) -> None:
    ternary = np.array(case["ternary"], dtype=np.int8).reshape(case["rows"], case["cols"])
    assert pack_2bit(ternary).tobytes().hex() == case["packed_hex"]
    packed = np.frombuffer(bytes.fromhex(case["packed_hex"]), dtype=np.uint8).reshape(pack_2bit(ternary).shape)
    np.testing.assert_array_equal(unpack_2bit(packed, case["rows"], case["cols"]), ternary)


@pytest.mark.parametrize("shape", [(1, 1), (3, 16, 16), (2, 4, 33, 15), (128, 384), (1, 1000)])
def test_round_trip(shape: tuple[int, ...]) -> None:
    ternary = np.random.default_rng(0).integers(-1, 2, shape).astype(np.int8)
    np.testing.assert_array_equal(unpack_2bit(pack_2bit(ternary), *shape[-2:]), ternary)


def test_gate_and_up_are_interleaved_by_block_of_rows() -> None:
    rng = np.random.default_rng(1)
    gate, up = (rng.integers(-1, 2, (3, 40, 20)).astype(np.int8) for _ in range(2))
    packed = pack_gate_up(gate, up)
    assert packed.shape == (3, 3, 2, 2, 64)
    np.testing.assert_array_equal(packed[:, :, 0], pack_2bit(gate))
    np.testing.assert_array_equal(packed[:, :, 1], pack_2bit(up))
    for found, expected in zip(unpack_gate_up(packed, 40, 20), (gate, up), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_size_is_two_bits_a_weight() -> None:
    assert pack_2bit(np.zeros((160, 64), dtype=np.int8)).nbytes == 160 * 64 // 4


@pytest.mark.parametrize("value", [-2, 2, 127])
def test_refuses_what_is_not_ternary(value: int) -> None:
    with pytest.raises(ValueError, match=r"lie in -1\.\.1"):
        pack_2bit(np.array([[value]], dtype=np.int8))


def test_refuses_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match="expected"):
        unpack_2bit(np.zeros((1, 1, 64), dtype=np.uint8), 17, 16)
