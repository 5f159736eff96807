"""What a run says of its mixture of experts: the router's load, and what the ternary weights are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mote_export.model import MoteLayer, TernaryExperts
from mote_export.model.quantizers import ternarize

DEAD_SHARE = 0.01  # an expert with less than this share of what it would get of an even load counts as dead
SAMPLE = 1 << 16  # codes of a matrix that are kept to count flips: 64 KiB, and an error of a share below 0.002


def load_statistics(counts: Tensor) -> dict[str, Any]:
    """Of selections, int64 [layers, experts]: "router_load", the experts' shares by layer, and "dead_experts", their number."""
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    dead = (shares * counts.shape[1] < DEAD_SHARE).sum()
    return {
        "router_load": [[round(share, 6) for share in layer] for layer in shares.tolist()],
        "dead_experts": int(dead),
    }


class TernaryStatistics:
    """Codes and scales of the ternary experts, and how many codes flipped since the last look.

    Args:
        layers: of the model; those without ternary experts are left out.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._experts = [
            (index, layer.experts)
            for index, layer in enumerate(layers)
            if isinstance(layer, MoteLayer) and isinstance(layer.experts, TernaryExperts)
        ]
        self._codes = self._sample() if self._experts else {}

    def take(self) -> dict[str, Any]:
        """ "ternary": an entry a layer of the shares of -1, 0 and 1, the mean scale, and the share of codes that flipped.

        Nothing for a model without ternary experts. "flipped" is of a fixed sample of each matrix, the rest of all weights.
        """
        if not self._experts:
            return {}
        codes, entries = {}, []
        for index, experts in self._experts:
            sums, scales, flips = torch.zeros(3, dtype=torch.int64), [], []
            for name, parameter in experts.named_parameters():
                values, scale = ternarize(parameter.detach())
                sums += torch.stack([(values == code).sum() for code in (-1, 0, 1)]).cpu()
                scales.append(scale.mean().item())
                key = f"{index}.{name}"
                codes[key] = _sample_of(values)
                flips.append((codes[key] != self._codes[key]).double().mean().item())
            shares = (sums.double() / sums.sum()).tolist()
            entries.append(
                {
                    "minus": round(shares[0], 6),
                    "zero": round(shares[1], 6),
                    "plus": round(shares[2], 6),
                    "scale": sum(scales) / len(scales),
                    "flipped": round(sum(flips) / len(flips), 6),
                }
            )
        self._codes = codes
        return {"ternary": entries}

    def state(self) -> dict[str, Tensor]:
        """What the next look compares with, int8, by the names of the matrices."""
        return dict(self._codes)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from `state`; matrices that it lacks count from now on."""
        self._codes.update({name: state[name] for name in self._codes if name in state})

    def _sample(self) -> dict[str, Tensor]:
        return {
            f"{index}.{name}": _sample_of(ternarize(parameter.detach())[0])
            for index, experts in self._experts
            for name, parameter in experts.named_parameters()
        }


def _sample_of(codes: Tensor) -> Tensor:
    flat = codes.flatten()
    return flat[:: -(-flat.numel() // SAMPLE)].to(torch.int8).cpu()
