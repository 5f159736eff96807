"""Weights that are ternary up to one number, and those that are made so."""

import pytest
import torch

from mote_export.packing.ternary import NotTernaryError, as_ternary
from mote_runtime.errors import MoteError


def ternary(scale: float = 0.037, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.randint(-1, 2, (24, 40), generator=torch.Generator().manual_seed(7)).to(torch.int8)
    return codes, codes.to(dtype) * torch.tensor(scale, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("force", [False, True])
def test_ternary_weights_are_read_bit_for_bit(dtype: torch.dtype, force: bool) -> None:
    codes, weight = ternary(dtype=dtype)
    found = as_ternary(weight, force)
    assert torch.equal(found.codes, codes)
    assert torch.equal((found.codes.float() * found.scale).to(dtype), weight)
    assert found.error == 0.0


def test_zeros_are_ternary() -> None:
    codes, scale, error = as_ternary(torch.zeros(3, 5))
    assert (int(codes.count_nonzero()), float(scale), error) == (0, 0.0, 0.0)


def test_one_weight_beside_is_refused_with_its_distance_and_the_cost_of_rounding() -> None:
    codes, weight = ternary(1.0)
    codes[2, 3], weight[2, 3] = 1, 0.9
    with pytest.raises(
        NotTernaryError, match=r"^1 of its 960 weights .* largest deviation is 0\.09\d+.*--ternarize"
    ) as refused:
        as_ternary(weight)
    found = as_ternary(weight, force=True)
    assert torch.equal(found.codes, codes)
    ones = int((codes != 0).sum())
    assert float(found.scale) == pytest.approx((ones - 0.1) / ones)
    changed = (found.codes * found.scale - weight).norm() / weight.norm()
    assert refused.value.error == found.error == pytest.approx(float(changed), rel=1e-5)
    assert refused.value.deviation == pytest.approx(1 - 0.9 / float(found.scale), rel=1e-4)


def test_an_outlier_does_not_take_the_scale_with_it() -> None:
    codes, weight = ternary(0.5)
    weight[0, 0], codes[0, 0] = 4.0, 1
    found = as_ternary(weight, force=True)
    assert torch.equal(found.codes, codes)
    assert float(found.scale) < 0.6


def test_rounding_costs_no_more_than_bitnets_quantizer() -> None:
    from mote_export.model.quantizers import ternarize

    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    codes, scale = ternarize(weight)
    found = as_ternary(weight, force=True)
    assert found.error < float((codes * scale - weight).norm() / weight.norm())


@pytest.mark.parametrize("weight", [torch.tensor([[1.0, torch.nan]]), torch.tensor([torch.inf]), torch.empty(0, 3)])
def test_what_has_no_ternary_form_is_refused_even_if_forced(weight: torch.Tensor) -> None:
    with pytest.raises(MoteError, match=r"NaN or infinity|empty"):
        as_ternary(weight, force=True)
