"""Memory of a mixture of experts from its sizes alone: by the formulas of the MoTE paper, and in bytes of the packed layouts.

With F = 3 * hidden * intermediate * layers, the parameters of the feed-forward layers that have experts, and E experts
(arXiv 2506.14435, section 4): MoE-LLaVA holds E * 2F bytes in BF16; MoTE a shared expert of 2F bytes in BF16, F in INT8, F / 2
in INT4, and E * F / 4 bytes of ternary experts at 2 bits. The paper's GB are 2^30 bytes, and its "non-embedding memory" is
that of the decoder's layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mote_export.packing import PACKINGS, SHARED_FORMATS, Packing, tiles
from mote_export.packing.lines import LINE, ROWS
from mote_runtime.errors import MoteError
from mote_runtime.manifest import GROUPED_SHARED_EXPERT

GIB = 1 << 30
TERNARY_BITS = 2.0
FLOAT32_BYTES, BF16_BYTES = 4, 2
SHARED_BITS = {"BF16": 16.0, "INT8": 8.0, "INT4": 4.0}
FULL_EXPERT_BITS = {"BF16": 16.0, "INT4": 4.0, "3 bits": 3.0}
KV_CACHE_BYTES = {"float32": 4, "int8": 1}
MAX_SIZE, MAX_LAYERS = 1 << 24, 1024
_SCALES_OF_AN_EXPERT = 3  # gate, up and down have one each


@dataclass(frozen=True)
class DecoderSizes:
    """What of a decoder decides its memory; `layers` is the number of layers that have experts."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layers: int

    @property
    def expert_parameters(self) -> int:
        """F: of the feed-forward layers that have experts, once."""
        return 3 * self.hidden_size * self.intermediate_size * self.layers

    @property
    def other_parameters(self) -> int:
        """Of attention in all layers and feed-forward layers without experts; biases and norms, below 0.1 %, are left out."""
        width = self.num_attention_heads * self.head_dim
        attention = 2 * self.hidden_size * (width + self.num_key_value_heads * self.head_dim)
        dense = 3 * self.hidden_size * self.intermediate_size
        return attention * self.num_hidden_layers + dense * (self.num_hidden_layers - self.layers)

    def kv_cache_bytes(self, form: str) -> int:
        """Of the keys and values of a position."""
        return kv_cache_bytes(self.num_hidden_layers, self.num_key_value_heads, self.head_dim, form)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str, layers: int | None = None) -> "DecoderSizes":
        """From the dictionary of a transformers configuration, of a text or a multimodal model.

        Args:
            config: as in config.json; nothing in it is trusted.
            source: for messages.
            layers: how many have experts; default: as `config.moe` says, else all.

        Raises:
            MoteError: a size is missing or impossible.
        """
        text = config.get("text_config", config)
        if not isinstance(text, Mapping):
            raise MoteError(f"{source}: text_config is {text!r}, expected an object")

        def size(name: str, default: int | None = None, most: int = MAX_SIZE) -> int:
            value = text.get(name, default)
            if value is None and default is not None:
                value = default
            if type(value) is not int or not 1 <= value <= most:
                raise MoteError(f"{source}: {name} is {value!r}, expected an integer from 1 to {most}")
            return value

        hidden, heads = size("hidden_size"), size("num_attention_heads")
        depth = size("num_hidden_layers", most=MAX_LAYERS)
        own = _expert_layers(config, depth, source) if layers is None else layers
        if not 1 <= own <= depth:
            raise MoteError(f"{source} has {depth} layers; expected 1 to {depth} with experts, not {own}")
        return cls(
            hidden_size=hidden,
            intermediate_size=size("intermediate_size"),
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", max(1, hidden // heads)),
            layers=own,
        )


def _expert_layers(config: Mapping[str, Any], depth: int, source: str) -> int:
    """Of a MoTE configuration, or of MoE-LLaVA's; all layers where neither is said."""
    moe = config.get("moe")
    if moe is None:
        return depth
    chosen = moe.get("layers", moe.get("moe_layers_idx")) if isinstance(moe, Mapping) else None
    if not isinstance(chosen, Sequence) or isinstance(chosen, str):
        raise MoteError(f"{source}: moe names no layers (layers, or moe_layers_idx)")
    return len(chosen)


@dataclass(frozen=True)
class MemoryRow:
    """A way to store the experts.

    Attributes:
        name: for people; of MoTE "shared expert + ternary experts".
        formula: bytes of the experts by the paper's formulas.
        exported: bytes of the experts in an export, with padding, scales and routers; None for what mote does not export.
        decoder: `formula` and the rest of the decoder's layers in BF16, the paper's non-embedding memory.
    """

    name: str
    formula: int
    exported: int | None
    decoder: int


def kv_cache_bytes(layers: int, kv_heads: int, head_dim: int, form: str) -> int:
    """Of the keys and values of a position in all layers, in float32 or int8."""
    return 2 * layers * kv_heads * head_dim * KV_CACHE_BYTES[form]


def full_precision_bytes(parameters: int, num_experts: int, bits: float = 16.0) -> int:
    """Of MoE-LLaVA's experts: E * 2F in BF16."""
    return round(num_experts * bits * parameters / 8)


def mote_bytes(parameters: int, num_experts: int, shared_bits: float = 16.0, ternary_bits: float = TERNARY_BITS) -> int:
    """Of MoTE's experts, the shared one included: 2F + E * F / 4 with the paper's formats."""
    return round((shared_bits + num_experts * ternary_bits) * parameters / 8)


def memory_table(sizes: DecoderSizes, num_experts: int, group_size: int) -> list[MemoryRow]:
    """The rows for so many experts, the dense model first; `group_size` is that of an int4 shared expert."""
    rest, parameters = BF16_BYTES * sizes.other_parameters, sizes.expert_parameters

    def row(name: str, formula: int, exported: int | None = None) -> MemoryRow:
        return MemoryRow(name, formula, exported, formula + rest)

    rows = [
        row(f"dense, {name}", full_precision_bytes(parameters, 1, FULL_EXPERT_BITS[name])) for name in ("BF16", "INT4")
    ]
    for name, bits in FULL_EXPERT_BITS.items():
        rows.append(row(f"MoE-LLaVA, {name}", full_precision_bytes(parameters, num_experts, bits)))
    for name, bits in SHARED_BITS.items():
        for packing in PACKINGS:
            exported = exported_bytes(sizes, num_experts, packing, name.lower(), group_size)
            ternary = float(packing.removesuffix("bit"))
            formula = mote_bytes(parameters, num_experts, bits, ternary)
            rows.append(row(f"MoTE, {name} + {packing}", formula, exported))
    return rows


def exported_bytes(sizes: DecoderSizes, num_experts: int, packing: str, shared_expert: str, group_size: int) -> int:
    """Bytes of the operator's constants in all layers with experts: what an export holds of them (docs/layout.md)."""
    hidden, intermediate = sizes.hidden_size, sizes.intermediate_size

    def gated(form: Packing) -> int:
        return 2 * _matrix(form, intermediate, hidden) + _matrix(form, hidden, intermediate)

    routed = num_experts * (gated(PACKINGS[packing]) + _SCALES_OF_AN_EXPERT * FLOAT32_BYTES)
    router = num_experts * hidden * FLOAT32_BYTES
    shared = gated(SHARED_FORMATS[shared_expert].packing)
    if shared_expert != "bf16":
        is_grouped = shared_expert == GROUPED_SHARED_EXPERT
        groups = [tiles(width, group_size) if is_grouped else 1 for width in (hidden, intermediate)]
        shared += BF16_BYTES * ROWS * (2 * tiles(intermediate, ROWS) * groups[0] + tiles(hidden, ROWS) * groups[1])
    return sizes.layers * (routed + router + shared)


def _matrix(form: Packing, rows: int, inputs: int) -> int:
    return tiles(rows, ROWS) * tiles(inputs, form.inputs) * LINE
