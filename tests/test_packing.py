"""L1: the packed layouts against their test vectors, as round trips, and what is never written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mote_export.model import quantizers
from mote_export.model.quantizers import ternarize, ternarize_matrix
from mote_export.packing import (
    PACKINGS,
    SHARED_FORMATS,
    Packing,
    dequantize,
    interleave,
    lines,
    pack_gate_up,
    pack_int4,
    pack_scales,
    quantize_int4,
    quantize_int8,
    rounding,
    tiles,
    unpack_1_6bit,
    unpack_2bit,
    unpack_gate_up,
    unpack_scales,
)
from mote_runtime import manifest

FORMATS: dict[str, Packing] = PACKINGS | {name: form.packing for name, form in SHARED_FORMATS.items()}
VALUES: dict[str, tuple[int, int, type]] = {  # least, greatest, type in memory
    "2bit": (-1, 1, np.int8),
    "1.6bit": (-1, 1, np.int8),
    "int4": (-8, 7, np.int8),
    "int8": (-127, 127, np.int8),
    "bf16": (0, 65535, np.uint16),
}
VECTORS = {
    name: json.loads((Path(__file__).parent / "vectors" / f"layout_{name}_v1.json").read_text()) for name in FORMATS
}
CASES = [(name, case) for name, vectors in VECTORS.items() for case in vectors["cases"]]
BITS = {"2bit": 2, "1.6bit": 1.6, "int4": 4, "int8": 8, "bf16": 16}


def random_values(name: str, *shape: int) -> np.ndarray:
    least, greatest, dtype = VALUES[name]
    return np.random.default_rng(0).integers(least, greatest + 1, shape).astype(dtype)


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda value: value if isinstance(value, str) else value["name"])
def test_vectors(name: str, case: dict[str, Any]) -> None:
    rows, cols, flat = case["rows"], case["cols"], case.get("ternary", case.get("codes"))
    values = np.array(flat, dtype=VALUES[name][2]).reshape(rows, cols)
    packed = FORMATS[name].pack(values)
    assert packed.shape == (tiles(rows, 16), tiles(cols, FORMATS[name].inputs), 64)
    assert packed.tobytes().hex() == case["packed_hex"]
    np.testing.assert_array_equal(FORMATS[name].unpack(packed, rows, cols), values)


@pytest.mark.parametrize("name", FORMATS)
def test_some_rows_at_a_time_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = random_values(name, 2, 70, 45)
    whole = FORMATS[name].pack(values)
    monkeypatch.setattr(lines, "CODES_AT_ONCE", 32 * 45)
    np.testing.assert_array_equal(FORMATS[name].pack(values), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_rounded_some_rows_at_a_time(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(23, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[5] = 0
    codes, scale = ternarize(weight)
    whole = [quantize_int4(weight, 32), quantize_int8(weight), (codes.to(torch.int8), scale)]
    for module in (rounding, quantizers):
        monkeypatch.setattr(module, "WEIGHTS_AT_ONCE", 4 * 70)
    for some, expected in zip(
        (quantize_int4(weight, 32), quantize_int8(weight), ternarize_matrix(weight)), whole, strict=True
    ):
        assert all(torch.equal(one, other) for one, other in zip(some, expected, strict=True))
    assert rounding.all_finite(weight)
    weight[22, 69] = float("nan")
    assert not rounding.all_finite(weight)


def test_the_vectors_are_those_of_the_formats() -> None:
    for name, vectors in VECTORS.items():
        assert (vectors["packing"], vectors["layout_version"]) == (name, 1)


def test_the_runtime_knows_the_same_names() -> None:
    assert tuple(PACKINGS) == manifest.PACKINGS
    assert ("float32", *SHARED_FORMATS) == manifest.SHARED_EXPERTS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 16, 16), (2, 4, 33, 15), (128, 384), (1, 1000), (17, 41)])
def test_round_trip(name: str, shape: tuple[int, ...]) -> None:
    values = random_values(name, *shape)
    unpacked = FORMATS[name].unpack(FORMATS[name].pack(values), *shape[-2:])
    assert unpacked.dtype == values.dtype
    np.testing.assert_array_equal(unpacked, values)


@pytest.mark.parametrize("name", FORMATS)
def test_gate_and_up_are_interleaved_by_block_of_rows(name: str) -> None:
    form = FORMATS[name]
    gate, up = random_values(name, 2, 3, 40, 20)
    packed = pack_gate_up(gate, up, form)
    assert packed.shape == (3, 3, 2, tiles(20, form.inputs), 64)
    np.testing.assert_array_equal(packed[:, :, 0], form.pack(gate))
    np.testing.assert_array_equal(packed[:, :, 1], form.pack(up))
    np.testing.assert_array_equal(packed, interleave(form.pack(gate), form.pack(up)))
    for found, expected in zip(unpack_gate_up(packed, 40, 20, form), (gate, up), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_size_without_padding(name: str) -> None:
    assert FORMATS[name].pack(random_values(name, 160, 240)).nbytes * 8 == 160 * 240 * BITS[name]


@pytest.mark.parametrize("name", FORMATS)
def test_padding_is_the_code_of_zero(name: str) -> None:
    zero = np.zeros((1, 1), VALUES[name][2])
    full = np.zeros((16, FORMATS[name].inputs), VALUES[name][2])
    np.testing.assert_array_equal(FORMATS[name].pack(zero), FORMATS[name].pack(full))


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("value", [-2, 2, 127])
def test_refuses_what_is_not_ternary(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=r"lie in -1\.\.1"):
        PACKINGS[name].pack(np.array([[value]], dtype=np.int8))


@pytest.mark.parametrize("value", [-9, 8])
def test_refuses_what_has_no_int4_code(value: int) -> None:
    with pytest.raises(ValueError, match=r"lie in -8\.\.7"):
        pack_int4(np.array([[value]], dtype=np.int8))


@pytest.mark.parametrize("name", FORMATS)
def test_refuses_a_wrong_shape(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        FORMATS[name].unpack(np.zeros((1, 1, 64), dtype=np.uint8), 17, 1)


def test_damaged_bytes_read_as_the_layout_says() -> None:
    every_byte = np.arange(256, dtype=np.uint8).reshape(4, 1, 64)
    t = unpack_1_6bit(every_byte, 64, 20)
    np.testing.assert_array_equal(t, unpack_1_6bit(np.minimum(every_byte, 242), 64, 20))
    assert t.max() == 1
    np.testing.assert_array_equal(unpack_2bit(np.full((1, 1, 64), 0xFF, np.uint8), 16, 16), np.full((16, 16), 2))


def bfloat16(value: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even, by integer arithmetic on the bits of float32."""
    bits = value.astype(np.float32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("cols", [1, 31, 128, 200])
def test_int4_codes_are_made_for_the_rounded_scale_of_their_group(group_size: int, cols: int) -> None:
    weight = np.random.default_rng(cols).standard_normal((5, cols)).astype(np.float32)
    weight[3] = 0.0
    codes, scale = quantize_int4(torch.from_numpy(weight), group_size)
    assert scale.dtype == torch.bfloat16
    assert scale.shape == (5, tiles(cols, group_size))
    for g in range(tiles(cols, group_size)):
        group = weight[:, g * group_size : (g + 1) * group_size]
        w = bfloat16(np.abs(group).max(axis=1) / np.float32(7))
        np.testing.assert_array_equal(scale[:, g].float().numpy(), w)
        with np.errstate(invalid="ignore"):
            expected = np.where(w[:, None] == 0, 0, np.clip(np.rint(group / w[:, None]), -8, 7))
        np.testing.assert_array_equal(codes[:, g * group_size : (g + 1) * group_size].numpy(), expected)
    assert not codes[3].any()


def test_int8_codes_are_made_for_the_rounded_scale_of_their_row() -> None:
    weight = np.random.default_rng(2).standard_normal((9, 77)).astype(np.float32)
    weight[4] = 0.0
    codes, scale = quantize_int8(torch.from_numpy(weight))
    w = bfloat16(np.abs(weight).max(axis=1, keepdims=True) / np.float32(127))
    np.testing.assert_array_equal(scale.float().numpy(), w)
    with np.errstate(invalid="ignore"):
        expected = np.where(w == 0, 0, np.clip(np.rint(weight / w), -127, 127))
    np.testing.assert_array_equal(codes.numpy(), expected)
    assert not codes[4].any()


@pytest.mark.parametrize(("name", "bound"), [("bf16", 0.0025), ("int8", 0.01), ("int4", 0.15)])
def test_dequantized_weights_are_near_the_original_ones(name: str, bound: float) -> None:
    weight = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    values, scale = SHARED_FORMATS[name].quantize(weight, 128)
    difference = dequantize(values, scale, 128) - weight
    assert 0 < difference.norm() / weight.norm() < bound


def test_bf16_keeps_bfloat16_weights() -> None:
    weight = torch.randn(7, 9).bfloat16()
    values, scale = SHARED_FORMATS["bf16"].quantize(weight, 0)
    assert torch.equal(dequantize(values, scale, 0), weight.float())


def test_scales_lie_by_block_of_rows_then_group_and_end_in_zeros() -> None:
    scale = torch.rand(21, 3).bfloat16()
    packed = pack_scales(scale)
    assert packed.shape == (2, 3, 16)
    assert packed[1, 2, 4] == scale[20, 2]
    assert not packed[1, :, 5:].any()
    assert torch.equal(unpack_scales(packed, 21), scale.float())
