"""How many bytes an export will hold, part by part, before a weight is read; and the most exact way of storing that fits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from mote_export.checkpoint import Checkpoint
from mote_export.defaults import BUDGET_STEPS, DEFAULT_FULL_EXPERTS
from mote_export.memory import FLOAT32_BYTES, DecoderSizes, exported_bytes, full_precision_bytes, kv_cache_bytes
from mote_export.model import MoteLayer
from mote_export.passes import PackOptions
from mote_export.passes.attention import attention_head_dim
from mote_export.quantize.model import LINEAR_PARTS, PARTS, VISION
from mote_runtime.errors import MoteError

BITS = {"float32": 32.0, "bf16": 16.0, "int8": 8.0, "int4": 4.0, "int3": 4.0}  # 3-bit codes are stored in 4
SCALE_BITS = 16.0


@dataclass(frozen=True)
class Estimate:
    """Bytes.

    Attributes:
        experts: of the MoE layers, with shared experts and routers.
        linear, embedding, vision: as the options of these names say.
        rest: norms, biases, convolutions, rotary tables and what else stays in float32.
        cache: keys and values of the whole context.
    """

    experts: int
    linear: int
    embedding: int
    vision: int
    rest: int
    cache: int

    @property
    def total(self) -> int:
        return self.experts + self.linear + self.embedding + self.vision + self.rest + self.cache

    @property
    def on_disk(self) -> int:
        """Of the files."""
        return self.total - self.cache

    def describe(self) -> str:
        """For people."""
        parts = {name: getattr(self, name) for name in ("experts", "linear", "embedding", "vision", "cache")}
        listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items() if size)
        return f"{self.total / 1e9:.2f} GB ({listed})"


@dataclass(frozen=True)
class Budget:
    """A limit for `Estimate.total`, and what to try, by name, the most exact first."""

    most_bytes: int
    steps: Mapping[str, PackOptions]

    @classmethod
    def of(cls, most_bytes: int, others: PackOptions) -> "Budget":
        """The presets, with all that they do not say as in `others`."""
        return cls(most_bytes, {name: replace(others, **step) for name, step in BUDGET_STEPS.items()})  # type: ignore[arg-type]


def choose(checkpoint: Checkpoint, budget: Budget, context_length: int) -> tuple[str, PackOptions, Estimate]:
    """The first step that fits: its name, the options and their estimate.

    Raises:
        MoteError: none does; with what the last one takes.
    """
    for name, pack in budget.steps.items():
        estimate = estimate_bytes(checkpoint, pack, context_length)
        if estimate.total <= budget.most_bytes:
            return name, pack, estimate
    raise MoteError(
        f"--memory-budget is {budget.most_bytes / 1e9:.2f} GB, but the smallest export of {checkpoint.name!r} ({name}) takes "
        f"{estimate.describe()}: allow more, or shorten the cache with --context-length."
    )


def estimate_bytes(checkpoint: Checkpoint, pack: PackOptions, context_length: int) -> Estimate:
    """Of a model whose weights may be on the meta device; what a step holds beside weights and cache is not counted."""
    model, config = checkpoint.model, checkpoint.model.config.text_config
    parts = {part: _layers(checkpoint, part) for part in (*LINEAR_PARTS, VISION, "embedding")}
    moe = [module for module in model.modules() if isinstance(module, MoteLayer)]
    counted = {id(layer.weight) for layers in parts.values() for layer in layers}
    counted |= {id(parameter) for layer in moe for parameter in layer.parameters()}
    others = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in counted)
    head_dim = attention_head_dim(config)
    position = kv_cache_bytes(config.num_hidden_layers, config.num_key_value_heads, head_dim, pack.kv_cache)
    return Estimate(
        experts=_experts(checkpoint, pack, len(moe)) if moe else 0,
        linear=sum(_stored(parts[part], pack.linear, pack) for part in LINEAR_PARTS),
        embedding=_stored(parts["embedding"], pack.embedding, pack),
        vision=_stored(parts[VISION], pack.vision, pack),
        rest=FLOAT32_BYTES * (others + context_length * head_dim),
        cache=position * context_length,
    )


def _layers(checkpoint: Checkpoint, part: str) -> list[nn.Linear | nn.Embedding]:
    return [module for module in PARTS[part](checkpoint.model) if isinstance(module, nn.Linear | nn.Embedding)]


def _stored(layers: list[nn.Linear | nn.Embedding], form: str, pack: PackOptions) -> int:
    weights = sum(layer.weight.numel() for layer in layers)
    bits = BITS[form] * weights
    if form == "int4":
        bits += SCALE_BITS * weights / pack.linear_group_size
    elif form == "int8":
        bits += SCALE_BITS * sum(layer.weight.shape[0] for layer in layers)
    return round(bits / 8)


def _experts(checkpoint: Checkpoint, pack: PackOptions, layers: int) -> int:
    settings = checkpoint.model.config.moe_settings
    assert settings is not None
    sizes = DecoderSizes.from_config(checkpoint.model.config.to_dict(), checkpoint.name, layers)
    if not settings.is_mote:
        form = pack.full_experts if settings.experts == "full" else DEFAULT_FULL_EXPERTS
        return full_precision_bytes(sizes.expert_parameters, settings.num_experts, BITS[form])
    inside = pack.shared_expert if pack.has_shared_inside else "bf16"
    held = exported_bytes(sizes, settings.num_experts, pack.packing, inside, pack.shared_group_size)
    return held if pack.has_shared_inside else held + 2 * sizes.expert_parameters  # twice as many bits as bf16
