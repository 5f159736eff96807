"""What is trained, and in which ways each trained model is stored: one line for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

MOE_LLAVA: dict[str, Any] = {"top_k": 2, "normalize_topk": True, "experts": "full", "shared_expert": "none"}
Storage = Literal["bf16", "int8", "int4", "int3", "ternarized"]
Family = Literal["dense", "MoE-LLaVA", "MoTE", "ablation", "attempt"]


@dataclass(frozen=True)
class Variant:
    """A model of stage III.

    Attributes:
        name: of its folder.
        moe: arguments of `upcycle`; None for the dense model, whose FFNs go on training.
        length, rate: of stage III, in those of the recipe.
        is_attempt: trained with the first seed alone, to look for a regime in which the order is another.
    """

    name: str
    moe: dict[str, Any] | None = field(default=None)
    length: float = 1.0
    rate: float = 1.0
    is_attempt: bool = False


@dataclass(frozen=True)
class Row:
    """A trained variant as it is stored, a row of the table.

    Attributes:
        variant: of which variant.
        storage: of what is not ternary in its feed-forward layers: the shared expert, the routed experts of MoE-LLaVA, the FFN of
            the dense model. "ternarized": full routed experts become ternary after training.
    """

    name: str
    title: str
    family: Family
    variant: str
    storage: Storage = "bf16"


VARIANTS = (
    Variant("dense"),
    Variant("moe-llava", {"num_experts": 4, **MOE_LLAVA}),
    Variant("moe-llava-3", {"num_experts": 3, **MOE_LLAVA}),
    Variant("mote", {"num_experts": 4}),
    Variant("mote-8", {"num_experts": 8}),
    Variant("mote-16", {"num_experts": 16}),
    Variant("mote-random", {"num_experts": 4, "init": "random"}),
    Variant("mote-ternary-shared", {"num_experts": 4, "shared_expert": "ternary"}),
    Variant("mote-no-qat", {"num_experts": 4, "experts": "full"}),
    Variant("dense-long", None, length=3.0, is_attempt=True),
    Variant("moe-llava-long", {"num_experts": 4, **MOE_LLAVA}, length=3.0, is_attempt=True),
    Variant("mote-long", {"num_experts": 4}, length=3.0, is_attempt=True),
    Variant("mote-fast", {"num_experts": 4}, rate=3.0, is_attempt=True),
)
ROWS = (
    Row("dense-bf16", "dense, BF16", "dense", "dense"),
    Row("dense-int4", "dense, INT4", "dense", "dense", "int4"),
    Row("moe-llava-bf16", "MoE-LLaVA, 4 experts, BF16", "MoE-LLaVA", "moe-llava"),
    Row("moe-llava-int4", "MoE-LLaVA, 4 experts, INT4", "MoE-LLaVA", "moe-llava", "int4"),
    Row("moe-llava-int3", "MoE-LLaVA, 4 experts, 3 bits", "MoE-LLaVA", "moe-llava", "int3"),
    Row("moe-llava-3-bf16", "MoE-LLaVA, 3 experts, BF16", "MoE-LLaVA", "moe-llava-3"),
    Row("moe-llava-3-int4", "MoE-LLaVA, 3 experts, INT4", "MoE-LLaVA", "moe-llava-3", "int4"),
    Row("mote-bf16", "MoTE, 4 experts, shared BF16", "MoTE", "mote"),
    Row("mote-int8", "MoTE, 4 experts, shared INT8", "MoTE", "mote", "int8"),
    Row("mote-int4", "MoTE, 4 experts, shared INT4", "MoTE", "mote", "int4"),
    Row("mote-8-bf16", "MoTE, 8 experts, shared BF16", "MoTE", "mote-8"),
    Row("mote-8-int4", "MoTE, 8 experts, shared INT4", "MoTE", "mote-8", "int4"),
    Row("mote-16-bf16", "MoTE, 16 experts, shared BF16", "MoTE", "mote-16"),
    Row("mote-16-int4", "MoTE, 16 experts, shared INT4", "MoTE", "mote-16", "int4"),
    Row("mote-random", "experts from random weights", "ablation", "mote-random"),
    Row("mote-ternary-shared", "shared expert ternary, too", "ablation", "mote-ternary-shared"),
    Row("mote-no-qat", "no QAT: ternarized after training", "ablation", "mote-no-qat", "ternarized"),
    Row("mote-full", "the same before it is ternarized", "ablation", "mote-no-qat"),
    Row("dense-long", "dense, BF16, three times the steps", "attempt", "dense-long"),
    Row("moe-llava-long", "MoE-LLaVA, 4 experts, BF16, three times the steps", "attempt", "moe-llava-long"),
    Row("moe-llava-long-int3", "the same in 3 bits", "attempt", "moe-llava-long", "int3"),
    Row("mote-long", "MoTE, 4 experts, shared BF16, three times the steps", "attempt", "mote-long"),
    Row("mote-long-int4", "the same, shared INT4", "attempt", "mote-long", "int4"),
    Row("mote-fast", "MoTE, 4 experts, shared BF16, three times the learning rate", "attempt", "mote-fast"),
)
VARIANT = {variant.name: variant for variant in VARIANTS}


def seeds_of(variant: Variant, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds that a variant is trained with."""
    return seeds[:1] if variant.is_attempt else seeds
