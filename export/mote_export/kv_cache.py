"""A KV cache in int8: scales from a calibration, and keys and values rounded as a runtime rounds them.

ONNX Runtime's GroupQueryAttention holds a key or value as `code * scale`, with a static float32 scale for each channel of each
head, and codes of -128 to 127 rounded to the nearest (docs/quantization.md). It attends to the codes of all positions, the newest
ones too, so what a layer computes does not depend on how a prompt was cut.

Keys are stored after rotary embedding, which turns two channels of a head into each other as positions grow: a calibration of a
hundred positions has seen little of what the slow pairs do in a thousand. The length of such a pair is the same at every position,
so that is what their two scales are taken from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache

from mote_export.memory import kv_cache_bytes
from mote_export.model import MoteModel
from mote_export.passes.attention import attention_head_dim
from mote_runtime.arrays import FloatArray
from mote_runtime.errors import MoteError
from mote_runtime.manifest import ModelSpec

LEAST, GREATEST = -128, 127
# The code of the greatest value of the calibration. It leaves room for greater ones, as what is cut costs more than a bit of every
# code: docs/quantization.md has the figures. An integer, so that no channel's greatest value lies between two codes, where torch
# and a runtime would round it to either side.
CALIBRATED = 64
MARGIN = GREATEST / CALIBRATED
RANDOM_TOKENS = 256  # of a built-in sample: what no question holds, such as the words of answers
# A channel that was zero throughout still takes what comes: its scale is this part of the greatest one of its layer.
SMALLEST_PART = 0.01
_KEY, _VALUE = "cache_key_scale", "cache_value_scale"  # buffers of an attention module


class CacheScales(NamedTuple):
    """Of one layer, float32 [kv_heads, head_dim] each, all positive."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class KvCache:
    """How keys and values are stored; goes into `mote.json`.

    Attributes:
        format: "int8".
        bytes_per_position: of all layers together.
        samples: prompts that the scales are from.
        own_samples: how many of these the user gave; the others are built in.
        positions: of these prompts together.
        margin: what the greatest values found there were multiplied by.
    """

    format: str
    bytes_per_position: int
    samples: int
    own_samples: int
    positions: int
    margin: float = MARGIN

    def describe(self) -> str:
        """For people."""
        return (
            f"The KV cache is in int8, {self.bytes_per_position:,} bytes a position, with scales calibrated on {self.positions} "
            f"positions of {self.samples} samples, {self.own_samples} of them given, and a margin of {self.margin:.2f}."
        )

    @property
    def warning(self) -> str | None:
        """A sentence for people, where the samples say little about what the model will be asked."""
        if self.own_samples:
            return None
        return (
            "the KV cache in int8 is calibrated on built-in samples alone, and keys and values beyond "
            f"{self.margin:.2f} times theirs are cut: give questions of the model's own kind with --sample"
        )


def calibrate(
    model: MoteModel, prompts: Sequence[tuple[Sequence[int], FloatArray | None]], own_samples: int, context_length: int
) -> KvCache:
    """Finds the scales and leaves them at the attention modules, where `scales_of` finds them.

    Every prompt passes through the model once, so that no more of it is in memory than its maps keep there.

    Args:
        model: after the passes that all targets share, in eval mode.
        prompts: token ids, and pixel values float32 [1, 3, height, width] if there is a picture; longer ones than `context_length`
            are left out.
        own_samples: how many of the prompts, the last ones, the user gave.

    Raises:
        MoteError: no prompt fits, or a key or value is not finite.
    """
    fitting = [(ids, images) for ids, images in prompts if len(ids) <= context_length]
    if not fitting:
        raise MoteError(f"no sample fits the context of {context_length} positions, so the KV cache has no scales.")
    observed = _Observed()
    for ids, images in tqdm(fitting, desc="mote-export: calibration", unit="sample", disable=None, leave=False):
        pictures = {} if images is None else {"pixel_values": torch.from_numpy(images)}
        with torch.no_grad():
            model(
                input_ids=torch.tensor([list(ids)]),
                logits_to_keep=1,
                use_cache=False,
                past_key_values=observed,
                **pictures,
            )
    set_scales(model, [observed.scales(layer) for layer in range(len(_attentions(model)))])
    config = model.config.text_config
    size = kv_cache_bytes(config.num_hidden_layers, config.num_key_value_heads, attention_head_dim(config), "int8")
    own = sum(len(ids) <= context_length for ids, _ in prompts[len(prompts) - own_samples :])
    return KvCache("int8", size, len(fitting), own, sum(len(ids) for ids, _ in fitting))


def random_prompt(model: ModelSpec) -> list[int]:
    """Token ids from the whole vocabulary, always the same ones; none stands for a picture's features."""
    allowed = np.arange(model.vocab_size)
    allowed = allowed[allowed != (-1 if model.image_token_id is None else model.image_token_id)]
    chosen = np.random.default_rng(0).choice(allowed, min(RANDOM_TOKENS, model.context_length))
    return [int(token_id) for token_id in chosen]


def set_scales(model: MoteModel, scales: Iterable[CacheScales]) -> None:
    """Says of every layer how its keys and values are rounded; of a model without scales they are not."""
    for attention, (key, value) in zip(_attentions(model), scales, strict=True):
        attention.register_buffer(_KEY, key, persistent=False)
        attention.register_buffer(_VALUE, value, persistent=False)


def scales_of(attention: nn.Module) -> CacheScales | None:
    """Of an attention module; None where keys and values stay float32."""
    key, value = getattr(attention, _KEY, None), getattr(attention, _VALUE, None)
    return None if key is None or value is None else CacheScales(key, value)


def rounded_cache(model: MoteModel) -> DynamicCache | None:
    """A cache, for one run of the model, that holds what the runtime's holds; None where keys and values stay float32."""
    scales = [scales_of(attention) for attention in _attentions(model)]
    found = [layer for layer in scales if layer is not None]
    return _Rounded(found) if len(found) == len(scales) > 0 else None


def round_to_codes(x: Tensor, scale: Tensor) -> Tensor:
    """`code * scale` nearest to each value of x [b, kv_heads, s, head_dim]; scale [kv_heads, head_dim]. Greater ones are cut."""
    scale = scale[:, None]
    return torch.clamp(torch.round(x / scale), LEAST, GREATEST) * scale


def _attentions(model: MoteModel) -> list[nn.Module]:
    return [layer.self_attn for layer in model.get_decoder().layers]


class _Observed(DynamicCache):
    """Passes keys and values on, and keeps the greatest magnitudes of each channel instead of them."""

    def __init__(self) -> None:
        super().__init__()
        self.greatest: dict[int, CacheScales] = {}  # not scales yet

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        rotated = cache_kwargs["cos"].shape[-1] if cache_kwargs else 0
        found = CacheScales(_greatest(_lengths(key_states, rotated)), _greatest(value_states))
        before = self.greatest.get(layer_idx, found)
        self.greatest[layer_idx] = CacheScales(*(torch.maximum(*pair) for pair in zip(found, before, strict=True)))
        return key_states, value_states

    def scales(self, layer: int) -> CacheScales:
        """Raises MoteError where a key or a value was NaN or infinity."""
        found = CacheScales(*(greatest / CALIBRATED for greatest in self.greatest[layer]))
        if not all(torch.isfinite(scale).all() for scale in found):
            raise MoteError(
                f"keys or values of layer {layer} are not finite, so no scale of an int8 KV cache fits them."
            )
        return CacheScales(*(scale.clamp(min=_smallest(scale)) for scale in found))


def _smallest(scale: Tensor) -> float:
    greatest = float(scale.max())
    return SMALLEST_PART * greatest if greatest > 0 else 1.0


def _lengths(keys: Tensor, rotated: int) -> Tensor:
    """The most that channels of keys [b, kv_heads, s, head_dim] can become; the first `rotated` turn in pairs of their halves."""
    half = rotated // 2
    first, second, rest = keys.split([half, half, keys.shape[-1] - 2 * half], dim=-1)
    length = torch.hypot(first, second)
    return torch.cat([length, length, rest], dim=-1)


def _greatest(x: Tensor) -> Tensor:
    """[kv_heads, head_dim]"""
    return x.float().abs().amax(dim=(0, 2))


class _Rounded(DynamicCache):
    """Keys and values as the runtime's cache gives them back."""

    def __init__(self, scales: Sequence[CacheScales]) -> None:
        super().__init__()
        self.scales = scales

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        scales = self.scales[layer_idx]
        rounded = round_to_codes(key_states, scales.key), round_to_codes(value_states, scales.value)
        return super().update(*rounded, layer_idx, cache_kwargs)
