"""Quantizes parts of a model inside torch: values become codes * scale, so that its accuracy can be measured before an export."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from mote_export.model import (
    MoteForConditionalGeneration,
    MoteLayer,
    MoteModel,
    RoutedExperts,
    TernaryExperts,
    find_gated_mlps,
)
from mote_export.model.surgery import PROJECTIONS
from mote_export.quantize.base import QuantizedWeight, Rounding, WeightFormat, fitting_group
from mote_export.quantize.matrix import check_method, quantize
from mote_runtime.errors import MoteError

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
SHARED_EXPERTS, ROUTED_EXPERTS, VISION = "shared_experts", "routed_experts", "vision"


@dataclass(frozen=True)
class QuantizeOptions:
    """Which parts are rounded, and how; None leaves a part as it is.

    Attributes:
        shared_experts: FFNs in full precision beside routed experts, as `mote-export --shared-expert int8|int4` stores them.
        routed_experts: routed experts in full precision, those of MoE-LLaVA; ternary ones are never touched.
        dense_mlps: gated FFNs of decoder layers without experts.
        attention: query, key, value and output projections of the decoder.
        projector: linear layers between the vision tower and the decoder.
        lm_head: the output layer.
        vision: linear layers of the vision tower.
        embedding: of tokens. A head tied to it stays tied if both are given one format, else each becomes a matrix of its own.

    Raises:
        MoteError: no part is given, or an unknown method.
    """

    shared_experts: WeightFormat | None = None
    routed_experts: WeightFormat | None = None
    dense_mlps: WeightFormat | None = None
    attention: WeightFormat | None = None
    projector: WeightFormat | None = None
    lm_head: WeightFormat | None = None
    embedding: WeightFormat | None = None
    vision: WeightFormat | None = None

    def __post_init__(self) -> None:
        if not self.chosen:
            raise MoteError(f"nothing is to be quantized, expected a format for one of {', '.join(PARTS)}.")
        for form in self.chosen.values():
            check_method(form.method)

    @property
    def chosen(self) -> dict[str, WeightFormat]:
        """The parts that are rounded."""
        return {field.name: form for field in fields(self) if (form := getattr(self, field.name)) is not None}


@dataclass(frozen=True)
class PartReport:
    """What became of a part.

    Attributes:
        part: a field of `QuantizeOptions`.
        format: as it was asked for.
        matrices, parameters: of the part; an embedding that is tied to a head in the same format counts as the head alone.
        code_bytes, scale_bytes: codes at their bits, scales at 16 bits.
        rounding: root mean square change of the weights, in units of their root mean square.
    """

    part: str
    format: WeightFormat
    matrices: int
    parameters: int
    code_bytes: int
    scale_bytes: int
    rounding: float

    @property
    def total_bytes(self) -> int:
        return self.code_bytes + self.scale_bytes


@dataclass(frozen=True)
class QuantizeReport:
    """What `quantize_model_` did, part by part."""

    parts: tuple[PartReport, ...]

    @property
    def total_bytes(self) -> int:
        """Of the rounded parts together."""
        return sum(part.total_bytes for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "parts": [asdict(part) | {"total_bytes": part.total_bytes} for part in self.parts],
            "total_bytes": self.total_bytes,
        }


def _projections(modules: Iterable[nn.Module], names: tuple[str, ...]) -> Iterator[nn.Module]:
    return (module.get_submodule(name) for module in modules for name in names)


def _shared_experts(model: MoteModel) -> Iterator[nn.Module]:
    layers = [layer for layer in model.mote_layers() if layer.settings.shared_expert == "full"]
    return _projections((layer.shared_expert for layer in layers if layer.shared_expert is not None), PROJECTIONS)


def _routed_experts(model: MoteModel) -> Iterator[nn.Module]:
    experts = (module for module in model.modules() if isinstance(module, RoutedExperts))
    return (module for module in experts if not isinstance(module, TernaryExperts))


def _dense_mlps(model: MoteModel) -> Iterator[nn.Module]:
    decoder = model.get_decoder()
    experts = tuple(f"{name}." for name, module in decoder.named_modules() if isinstance(module, MoteLayer))
    names = [name for name in find_gated_mlps(decoder) if not name.startswith(experts)]
    return _projections((decoder.get_submodule(name) for name in names), PROJECTIONS)


def _attention(model: MoteModel) -> Iterator[nn.Module]:
    return _projections((layer.self_attn for layer in model.get_decoder().layers), ATTENTION_PROJECTIONS)


def _projector(model: MoteModel) -> Iterator[nn.Module]:
    if isinstance(model, MoteForConditionalGeneration):
        yield from (module for module in model.multi_modal_projector.modules() if isinstance(module, nn.Linear))


def _lm_head(model: MoteModel) -> Iterator[nn.Module]:
    yield model.get_output_embeddings()


def _embedding(model: MoteModel) -> Iterator[nn.Module]:
    yield model.get_input_embeddings()


def _vision(model: MoteModel) -> Iterator[nn.Module]:
    if isinstance(model, MoteForConditionalGeneration):
        yield from (module for module in model.vision_tower.modules() if type(module) is nn.Linear)


PARTS: dict[str, Callable[[MoteModel], Iterator[nn.Module]]] = {
    SHARED_EXPERTS: _shared_experts,
    ROUTED_EXPERTS: _routed_experts,
    "dense_mlps": _dense_mlps,
    "attention": _attention,
    "projector": _projector,
    "lm_head": _lm_head,
    "embedding": _embedding,
    VISION: _vision,
}
LINEAR_PARTS = ("dense_mlps", "attention", "projector", "lm_head")  # what mote-export --linear is for


def weights_of(module: nn.Module, part: str) -> list[Tensor]:
    """The matrices [N, K], or stacks of them, that a module of `part` holds; a bias is none.

    Raises:
        MoteError: a layer of another type than a plain one, whose weights mean something else.
    """
    if isinstance(module, RoutedExperts):
        return list(module.parameters())
    if type(module) not in (nn.Linear, nn.Embedding):
        raise MoteError(
            f"{part} has a layer of type {type(module).__name__}, only plain linear layers can be quantized."
        )
    return [module.get_parameter("weight")]


def quantize_model_(model: MoteModel, options: QuantizeOptions) -> QuantizeReport:
    """Rounds the parts that `options` name, in place: every weight becomes code * scale, in float32.

    Args:
        model: in float32, on any device; matrices are rounded one at a time.

    Raises:
        MoteError: a part that the model lacks, weights in another dtype, or NaN or infinity in them. Parts before that one are
            already rounded, so drop the model.
    """
    _untie_head(model, options)
    done: set[int] = set()  # a tied matrix is rounded, and counted, once
    return QuantizeReport(tuple(_round_part(model, part, form, done) for part, form in options.chosen.items()))


def _round_part(model: MoteModel, part: str, form: WeightFormat, done: set[int]) -> PartReport:
    parameters = [parameter for module in PARTS[part](model) for parameter in weights_of(module, part)]
    if not parameters:
        raise MoteError(f"{part} are to be quantized, but {type(model).__name__} has none.")
    rounding, matrices, weights, code_bytes, scale_bytes = Rounding(), 0, 0, 0, 0
    for parameter in parameters:
        if parameter.dtype != torch.float32:
            raise MoteError(
                f"{part} are in {parameter.dtype}, expected torch.float32: convert the model first, model.float()."
            )
        if id(parameter) in done:
            continue
        done.add(id(parameter))
        for matrix in parameter.data.unbind() if parameter.dim() == 3 else (parameter.data,):
            quantized = quantize_matrix(matrix, form, part)
            rounding += quantized.rounding(matrix)
            matrix.copy_(quantized.dequantize())
            matrices, weights = matrices + 1, weights + matrix.numel()
            code_bytes, scale_bytes = code_bytes + quantized.code_bytes, scale_bytes + quantized.scale_bytes
    return PartReport(part, form, matrices, weights, code_bytes, scale_bytes, rounding.relative)


def quantize_matrix(weight: Tensor, form: WeightFormat, part: str) -> QuantizedWeight:
    """A matrix of `part`, in the groups that an export stores it in.

    The packed layout of a shared expert allows a shorter last group; the groups of stock operators divide the inputs.
    """
    inputs, wanted = weight.shape[1], form.wanted_group
    group = wanted if part == SHARED_EXPERTS else fitting_group(inputs, wanted)
    return quantize(weight, form.bits, group, form.method)


def _untie_head(model: MoteModel, options: QuantizeOptions) -> None:
    """Gives a tied head a matrix of its own where the two become different."""
    (head,), (embedding,) = (weights_of(next(PARTS[part](model)), part) for part in ("lm_head", "embedding"))
    if head is not embedding or options.lm_head == options.embedding:
        return
    model.get_output_embeddings().weight = nn.Parameter(head.detach().clone(), requires_grad=head.requires_grad)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
