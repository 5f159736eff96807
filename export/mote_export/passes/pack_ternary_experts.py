"""MoteLayer -> one `mote::ternary_moe` with packed weights, the shared expert inside or beside it; master weights are dropped."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mote_export import ops
from mote_export.defaults import (
    DEFAULT_EMBEDDING,
    DEFAULT_FULL_EXPERTS,
    DEFAULT_KV_CACHE,
    DEFAULT_LINEAR,
    DEFAULT_PACKING,
    DEFAULT_QUANTIZER,
    DEFAULT_SHARED_EXPERT,
    DEFAULT_SHARED_GROUP_SIZE,
    DEFAULT_VISION,
    EXPERT_FORMATS,
    LINEAR_FORMATS,
)
from mote_export.model import MoteLayer, RoutedExperts
from mote_export.model.quantizers import ternarize_matrix
from mote_export.packing import (
    LAYOUT_VERSION,
    MAX_WIDTH,
    PACKINGS,
    SHARED_FORMATS,
    Array,
    Packing,
    SharedFormat,
    dequantize,
    interleave,
    pack_gate_up,
    pack_scales,
)
from mote_export.parallel import each
from mote_export.passes.base import ModulePass
from mote_export.passes.pack_linear import PackedFormat
from mote_export.quantize.base import Rounding, WeightFormat
from mote_export.quantize.matrix import METHODS, quantize
from mote_export.weights import check_finite, read, read_part
from mote_runtime.errors import MoteError
from mote_runtime.manifest import GROUPED_SHARED_EXPERT, KV_CACHES, SHARED_EXPERTS, SHARED_GROUP_SIZES

OUTSIDE = "float32"  # as it is, in stock linear layers
SHARED_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
FORMAT_BITS: dict[str, Literal[8, 4, 3] | None] = {"float32": None, "bf16": None, "int8": 8, "int4": 4, "int3": 3}


@dataclass(frozen=True)
class PackOptions:
    """How weights are stored.

    Attributes:
        packing: of the ternary experts, a key of `PACKINGS`.
        shared_expert: `float32` for stock linear layers outside of the operator, or a key of `SHARED_FORMATS`.
        shared_group_size: inputs that share a scale in `int4`; other formats have none.
        quantizer: how scales of integer weights are chosen, a key of `quantize.METHODS`.
        linear: of attention's projections, dense FFNs of the decoder, the projector and the output layer: float32, bf16, int8 or
            int4.
        embedding: of the embedding of tokens, in one of these.
        vision: of the linear layers of the vision tower, in one of these.
        full_experts: of routed experts in full precision, those of MoE-LLaVA: float32, int8, int4 or int3.
        linear_group_size: inputs that share a scale in the int4 and int3 of these four.
        kv_cache: of keys and values, float32 or int8.
        ternarize: round the weights of BitNet layers that should be ternary and are not, instead of refusing them.

    Raises:
        MoteError: a value that is not among those.
    """

    packing: str = DEFAULT_PACKING
    shared_expert: str = DEFAULT_SHARED_EXPERT
    shared_group_size: int = DEFAULT_SHARED_GROUP_SIZE
    quantizer: str = DEFAULT_QUANTIZER
    linear: str = DEFAULT_LINEAR
    embedding: str = DEFAULT_EMBEDDING
    vision: str = DEFAULT_VISION
    full_experts: str = DEFAULT_FULL_EXPERTS
    linear_group_size: int = DEFAULT_SHARED_GROUP_SIZE
    kv_cache: str = DEFAULT_KV_CACHE
    ternarize: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("packing", self.packing, tuple(PACKINGS)),
            ("shared_expert", self.shared_expert, SHARED_EXPERTS),
            ("shared_group_size", self.shared_group_size, SHARED_GROUP_SIZES),
            ("quantizer", self.quantizer, tuple(METHODS)),
            ("linear", self.linear, LINEAR_FORMATS),
            ("embedding", self.embedding, LINEAR_FORMATS),
            ("vision", self.vision, LINEAR_FORMATS),
            ("full_experts", self.full_experts, EXPERT_FORMATS),
            ("linear_group_size", self.linear_group_size, SHARED_GROUP_SIZES),
            ("kv_cache", self.kv_cache, KV_CACHES),
        ):
            if value not in known:
                raise MoteError(f"{name} is {value!r}, expected {', '.join(map(repr, known))}.")

    @property
    def has_shared_inside(self) -> bool:
        return self.shared_expert != OUTSIDE

    @property
    def shared_format(self) -> str:
        """The operator's attribute."""
        return self.shared_expert if self.has_shared_inside else ops.NO_SHARED_EXPERT

    @property
    def operator_group_size(self) -> int:
        """The operator's attribute `shared_group_size`: 0 where there are no groups."""
        return self.shared_group_size if self.shared_expert == GROUPED_SHARED_EXPERT else 0

    def packed(self, name: str) -> PackedFormat:
        """bf16, int8 or int4 of a linear layer, for `mote::quantized_matmul`."""
        return PackedFormat(name, self.linear_group_size if name == GROUPED_SHARED_EXPERT else 0, self.quantizer)

    def weight_format(self, name: str) -> WeightFormat | None:
        """What a part is to be stored as, by its name; None for float32 and bf16."""
        bits = FORMAT_BITS[name]
        return (
            None if bits is None else WeightFormat(bits, self.quantizer, None if bits == 8 else self.linear_group_size)
        )


class PackedTernaryExperts(nn.Module):
    """Router, routed experts and perhaps the shared one as one operator.

    Buffers and attributes have the names, shapes and order of docs/operator.md; the buffer of an absent input is None.
    """

    router: Tensor
    gate_up_packed: Tensor
    down_packed: Tensor
    shared_gate_up: Tensor | None

    def __init__(self, layer: MoteLayer, options: PackOptions) -> None:
        super().__init__()
        experts = layer.experts
        self.num_experts, self.intermediate_size, self.hidden_size = experts.gate_proj.shape
        self.attributes: dict[str, Any] = {  # of docs/operator.md, for every spelling of the operator
            "num_experts": self.num_experts,
            "top_k": layer.settings.top_k,
            "normalize_topk": layer.settings.normalize_topk,
            "intermediate_size": self.intermediate_size,
            "activation": "silu",
            "packing": options.packing,
            "layout_version": LAYOUT_VERSION,
            "shared_format": options.shared_format,
            "shared_group_size": options.operator_group_size,
        }
        router = read(layer.router.weight).float()
        check_finite(layer.router.weight, router)
        weights: dict[str, Tensor | None] = {"router": router}
        weights |= _pack_experts(experts, PACKINGS[options.packing])
        weights |= dict.fromkeys(("shared_gate_up", "shared_gate_up_scale", "shared_down", "shared_down_scale"))
        self.shared_rounding = Rounding()
        if options.has_shared_inside:
            form = SHARED_FORMATS[options.shared_format]
            assert layer.shared_expert is not None
            shared, self.shared_rounding = _pack_shared_expert(layer.shared_expert, form, options)
            weights |= shared
        self.input_names = tuple(weights)
        for name, weight in weights.items():
            self.register_buffer(name, weight)

    def operator_inputs(self) -> list[Tensor | None]:
        """The operator's inputs after x, in order."""
        return [getattr(self, name) for name in self.input_names]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mote.ternary_moe(x, *self.operator_inputs(), *self.attributes.values())
        return y


class PackedMoteLayer(nn.Module):
    """`MoteLayer` for inference: y = experts(x), plus shared_expert(x) where that one is outside of the operator."""

    def __init__(self, layer: MoteLayer, options: PackOptions) -> None:
        super().__init__()
        self.options = options
        self.shared_expert = None if options.has_shared_inside else layer.shared_expert
        self.experts = PackedTernaryExperts(layer, options)

    def forward(self, hidden_states: Tensor) -> Tensor:
        y: Tensor = self.experts(hidden_states)
        return y if self.shared_expert is None else self.shared_expert(hidden_states) + y


def _pack_experts(experts: RoutedExperts, packing: Packing) -> dict[str, Tensor]:
    """Packs expert by expert, so that the codes of few experts exist unpacked."""

    def pack(index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gate, gate_scale = _ternarized(experts.gate_proj, index)
        up, up_scale = _ternarized(experts.up_proj, index)
        gate_up = torch.from_numpy(pack_gate_up(gate.numpy(), up.numpy(), packing))
        down, down_scale = _ternarized(experts.down_proj, index)
        return gate_up, torch.stack([gate_scale, up_scale]), torch.from_numpy(packing.pack(down.numpy())), down_scale

    names = ("gate_up_packed", "gate_up_scale", "down_packed", "down_scale")
    packed = zip(*each(pack, range(experts.gate_proj.shape[0])), strict=True)
    return {name: torch.stack(parts) for name, parts in zip(names, packed, strict=True)}


def _ternarized(parameter: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Codes int8 [N, K] and scale of the matrix of an expert."""
    codes, scale = ternarize_matrix(read_part(parameter, index))
    check_finite(parameter, scale)
    return codes, scale


def _pack_shared_expert(
    shared_expert: nn.Module, form: SharedFormat, options: PackOptions
) -> tuple[dict[str, Tensor | None], Rounding]:
    def pack(name: str) -> tuple[Array, Tensor | None, Rounding]:
        parameter = shared_expert.get_parameter(f"{name}.weight")
        weight = read(parameter)
        values, scale, rounded = _stored(weight, form, options)
        check_finite(parameter, weight if scale is None else scale)
        return form.packing.pack(values.numpy()), None if scale is None else pack_scales(scale), rounded

    lines, scales, rounded = zip(*each(pack, SHARED_PROJECTIONS), strict=True)
    rounding = sum(rounded, Rounding())
    gate_scale, up_scale, down_scale = scales
    weights = {
        "shared_gate_up": torch.from_numpy(interleave(lines[0], lines[1])),
        "shared_gate_up_scale": None
        if gate_scale is None or up_scale is None
        else torch.stack([gate_scale, up_scale], 1),
        "shared_down": torch.from_numpy(lines[2]),
        "shared_down_scale": down_scale,
    }
    return weights, rounding


def _stored(weight: Tensor, form: SharedFormat, options: PackOptions) -> tuple[Tensor, Tensor | None, Rounding]:
    """Values for the packing, scales or None, and what storing them so changes."""
    if form.bits is None:
        values, scale = form.quantize(weight, 0)
        is_kept = weight.dtype == torch.bfloat16
        return values, scale, Rounding() if is_kept else Rounding.of(weight, dequantize(values, scale, 0))
    quantized = quantize(weight, form.bits, options.operator_group_size, options.quantizer)
    return quantized.codes, quantized.scale, quantized.rounding(weight)


def pack_ternary_experts(options: PackOptions | None = None) -> ModulePass:
    """The pass for weights stored as `options` say; by default as `mote-export` does."""
    chosen = options or PackOptions()

    def check(module: nn.Module) -> str | None:
        assert isinstance(module, MoteLayer)
        if not module.settings.is_mote:
            return (
                f"it has {module.settings.experts} routed experts with shared_expert {module.settings.shared_expert!r}, the "
                "operator computes ternary ones beside a full one"
            )
        widest = max(module.experts.gate_proj.shape[1:])
        if widest > MAX_WIDTH:
            return f"a matrix of its experts has {widest} rows or columns, at most {MAX_WIDTH} can be packed"
        if chosen.has_shared_inside and module.shared_expert is not None:
            for name in SHARED_PROJECTIONS:
                kind = type(module.shared_expert.get_submodule(name))
                if kind is not nn.Linear:
                    return (
                        f"{name} of its shared expert is of type {kind.__name__}, only plain linear layers can be stored as "
                        f"{chosen.shared_expert} (--shared-expert float32 leaves it as it is)"
                    )
        return None

    def rewrite(module: nn.Module) -> nn.Module:
        assert isinstance(module, MoteLayer)
        return PackedMoteLayer(module, chosen)

    return ModulePass(
        name="pack-ternary-experts",
        pattern=lambda module: isinstance(module, MoteLayer),
        check=check,
        rewrite=rewrite,
    )
