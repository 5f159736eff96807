"""The ways to store a trained model's feed-forward layers: rounded in torch as the export rounds them, and their bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import LlavaForConditionalGeneration

from mote_export.memory import DecoderSizes, exported_bytes, full_precision_bytes
from mote_export.model import MoteForConditionalGeneration
from mote_export.quantize import QuantizeOptions, WeightFormat, quantize_model_
from mote_export.quantize.base import Bits

from .models import ternarized
from .variants import Row

GROUP = 64  # of INT4 and 3 bits, for every model alike: a scale for each row of these matrices
QUANTIZERS = ("rtn", "hqq")
_BITS: dict[str, Bits] = {"int8": 8, "int4": 4, "int3": 3}
_ROUTER_BYTES = 4  # a float32


@dataclass(frozen=True)
class Stored:
    """A model as it would be read back, float32 with rounded values.

    Attributes:
        quantizer: "rtn" or "hqq"; None where nothing is quantized after training.
        expert_bytes: of all its feed-forward layers, scales and routers included.
    """

    model: LlavaForConditionalGeneration
    quantizer: str | None
    expert_bytes: int


def stored(model: LlavaForConditionalGeneration, row: Row) -> Iterator[Stored]:
    """The model of a row, once for every quantizer. `model`, in bfloat16, stays as it is."""
    bits = _BITS.get(row.storage)
    for quantizer in QUANTIZERS if bits else (None,):
        stored = _float32_copy(model)
        if row.storage == "ternarized":
            assert isinstance(stored, MoteForConditionalGeneration)
            stored = ternarized(stored)
        size = expert_bytes(stored, row.storage)
        if quantizer is not None:
            assert bits is not None
            form = WeightFormat(bits, quantizer, 0 if bits == 8 else GROUP)
            report = quantize_model_(stored, QuantizeOptions(**{_quantized_part(stored): form}))
            if _quantized_part(stored) != "shared_experts":
                size = report.total_bytes + _router_bytes(stored)
        yield Stored(stored, quantizer, size)


def _float32_copy(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Built anew: after training a layer still holds its last balancing loss, which cannot be copied."""
    built = type(model)(copy.deepcopy(model.config))
    built.load_state_dict(model.state_dict())
    return built.float()


def _quantized_part(model: LlavaForConditionalGeneration) -> str:
    if not isinstance(model, MoteForConditionalGeneration):
        return "dense_mlps"
    settings = model.config.moe_settings
    assert settings is not None
    return "routed_experts" if settings.shared_expert == "none" else "shared_experts"


def _router_bytes(model: LlavaForConditionalGeneration) -> int:
    if not isinstance(model, MoteForConditionalGeneration):
        return 0
    return sum(layer.router.weight.numel() * _ROUTER_BYTES for layer in model.mote_layers())


def expert_bytes(model: LlavaForConditionalGeneration, storage: str) -> int:
    """Of the feed-forward layers: of MoTE those of its export, of others BF16 weights and float32 routers."""
    sizes = DecoderSizes.from_config(model.config.to_dict(), "the model", model.config.text_config.num_hidden_layers)
    if not isinstance(model, MoteForConditionalGeneration):
        return full_precision_bytes(sizes.expert_parameters, 1)
    settings = model.config.moe_settings
    assert settings is not None
    if settings.is_mote:
        shared = "bf16" if storage == "ternarized" else storage
        return exported_bytes(sizes, settings.num_experts, "2bit", shared, GROUP)
    # A ternary shared expert is one ternary expert more.
    if settings.experts == "ternary":
        shared_bytes = exported_bytes(sizes, settings.num_experts, "2bit", "bf16", GROUP) - full_precision_bytes(
            sizes.expert_parameters, 1
        )
        return shared_bytes + (shared_bytes - _router_bytes(model)) // settings.num_experts
    experts = settings.num_experts + (settings.shared_expert == "full")
    return full_precision_bytes(sizes.expert_parameters, experts) + _router_bytes(model)
