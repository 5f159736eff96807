"""BitNet b1.58's quantizers as MoTE uses them (arXiv 2402.17764, arXiv 2506.14435), for training and for packing.

Each quantizer exists once. Fake quantization for training is built on it with a straight-through estimator, and packing uses
its codes, so a trained weight and its packed form cannot differ.
"""

import torch
from torch import Tensor

SCALE_FLOOR = 1e-5
INT8_MAX = 127.0
INT8_MIN = -128.0
WEIGHTS_AT_ONCE = 1 << 18


def ternarize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Absmean ternary quantization of each matrix.

    Args:
        weight: [..., N, K], any float dtype; every [N, K] matrix has a scale of its own.

    Returns:
        codes: [..., N, K] in {-1, 0, 1}, float32. scale: [...], float32, mean |W|, at least 1e-5. W is about codes * scale.
    """
    scale = _absmean(weight)
    return _ternary_codes(weight, (1.0 / scale)[..., None, None]), scale


def ternarize_matrix(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`ternarize` for packing: of one matrix, some rows at a time, so that what is computed on the way stays in the cache.

    Args:
        weight: [N, K], any float dtype.

    Returns:
        codes: [N, K] in {-1, 0, 1}, int8. scale: scalar, float32. The numbers are those of `ternarize`.
    """
    scale = _absmean(weight)
    inverse = 1.0 / scale
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    rows = max(1, WEIGHTS_AT_ONCE // max(1, weight.shape[1]))
    for some, result in zip(weight.split(rows), codes.split(rows), strict=True):
        result.copy_(_ternary_codes(some, inverse))
    return codes, scale


def _absmean(weight: Tensor) -> Tensor:
    """mean |W| of each matrix, in float32."""
    return weight.to(torch.float32, copy=True).abs_().mean(dim=(-2, -1)).clamp(min=SCALE_FLOOR)


def _ternary_codes(weight: Tensor, inverse: Tensor) -> Tensor:
    return (weight.float() * inverse).round_().clamp_(-1.0, 1.0)


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Absmax int8 quantization of each token (row).

    Args:
        x: [..., n] float32.

    Returns:
        codes: [..., n] integers in -128..127, as float32. step: [..., 1] float32; x is about codes * step.
    """
    absmax = x.abs().amax(dim=-1, keepdim=True).clamp(min=SCALE_FLOOR)
    # A tensor as numerator: torch turns scalar / tensor into reciprocal and product, which rounds twice.
    codes = (x * torch.div(absmax.new_tensor(INT8_MAX), absmax)).round().clamp(INT8_MIN, INT8_MAX)
    return codes, absmax / INT8_MAX


def fake_ternarize(weight: Tensor) -> Tensor:
    """Ternary weights in the forward pass, identity gradient to the master weights. Shape and dtype as `weight`."""
    codes, scale = ternarize(weight.detach())
    quantized = (codes * scale[..., None, None]).to(weight.dtype)
    return weight + (quantized - weight).detach()


def fake_quantize_activations(x: Tensor) -> Tensor:
    """Int8 activations in the forward pass, identity gradient. Shape and dtype as `x`."""
    codes, step = quantize_activations(x.detach().float())
    return x + ((codes * step).to(x.dtype) - x).detach()
