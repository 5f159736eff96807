"""What a node of domain `mote` looks like, for ONNX's own tools: schemas of the operators of docs/operator.md, version 1.

`register()` makes onnx.checker hold nodes to them and onnx.shape_inference compute the type and shape of what they produce. An
exported file does not need it: it carries the types of all its values. The schemas are in `mote_export`, as `onnx` is a package of
the exporter and the runtime does without it; this module imports nothing else, so it needs no torch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.defs
from onnx import AttributeProto, TypeProto
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceError

DOMAIN = "mote"
VERSION = 1
MAX_TOKEN_RANK = 4  # of x
LINE = 64  # bytes, the last dimension of packed weights


@dataclass(frozen=True)
class Input:
    """One input: its element type as onnx spells it, and its rank, or None where several are allowed."""

    name: str
    dtype: str
    rank: int | None
    description: str
    is_optional: bool = False


@dataclass(frozen=True)
class Attribute:
    """One attribute; a node must have all of them, so none has a default."""

    name: str
    type: str
    description: str


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        doc: what it computes.
        inputs, attributes: in the order of docs/operator.md. The first input is x, whose shape the output y has.
        output_width: the attribute that is the last dimension of y; None if that of x is.
    """

    name: str
    doc: str
    inputs: Sequence[Input]
    attributes: Sequence[Attribute]
    output_width: str | None = None


TERNARY_MOE = Operator(
    name="TernaryMoE",
    doc="A mixture of ternary experts for every token (row) of x: router, top-k selection, the selected experts and their "
    "weighted sum; with a shared_format other than none also the shared expert, which is added. Experts are gated feed-forward "
    "layers, down(silu(gate(x)) * up(x)), whose weights are -1, 0 or 1 times one scale a matrix. Weights must be initializers.",
    inputs=(
        Input("x", "float", None, "hidden states [*, H], rank 1 to 4; a token is a row"),
        Input("router", "float", 2, "[E, H], no bias"),
        Input("gate_up_packed", "uint8", 5, "ternary codes of gate (0) and up (1), [E, ceil(I/16), 2, ceil(H/C), 64]"),
        Input("gate_up_scale", "float", 2, "mean absolute weight of gate and of up, [E, 2]"),
        Input("down_packed", "uint8", 4, "ternary codes of down, [E, ceil(H/16), ceil(I/C), 64]"),
        Input("down_scale", "float", 1, "mean absolute weight of down, [E]"),
        Input("shared_gate_up", "uint8", 4, "shared expert, [ceil(I/16), 2, ceil(H/Cs), 64]", is_optional=True),
        Input("shared_gate_up_scale", "bfloat16", 4, "its scales, [ceil(I/16), 2, G, 16]", is_optional=True),
        Input("shared_down", "uint8", 3, "shared expert, [ceil(H/16), ceil(I/Cs), 64]", is_optional=True),
        Input("shared_down_scale", "bfloat16", 3, "its scales, [ceil(H/16), G, 16]", is_optional=True),
    ),
    attributes=(
        Attribute("num_experts", "INT", "E, 1 to 256"),
        Attribute("top_k", "INT", "experts of a token, 1 to E"),
        Attribute("normalize_topk", "INT", "0: raw softmax probabilities; 1: divided by the sum of the selected ones"),
        Attribute("intermediate_size", "INT", "I, of the experts and of the shared expert alike"),
        Attribute("activation", "STRING", "silu"),
        Attribute("packing", "STRING", "of the ternary codes: 2bit (C = 16) or 1.6bit (C = 20)"),
        Attribute("layout_version", "INT", "1"),
        Attribute("shared_format", "STRING", "none, bf16 (Cs = 2), int8 (Cs = 4) or int4 (Cs = 8)"),
        Attribute("shared_group_size", "INT", "inputs that share a scale: 32, 64, 128 or 256 for int4, else 0"),
    ),
)
TERNARY_MATMUL = Operator(
    name="TernaryMatMul",
    doc="A linear layer, y = W x for every token (row) of x, whose weights are -1, 0 or 1 times one scale. Weights must be "
    "initializers.",
    inputs=(
        Input("x", "float", None, "[*, K], rank 1 to 4; a token is a row"),
        Input("packed", "uint8", 3, "ternary codes, [ceil(N/16), ceil(K/C), 64]"),
        Input("scale", "float", 1, "mean absolute weight, [1]"),
    ),
    attributes=(
        Attribute("in_features", "INT", "K"),
        Attribute("out_features", "INT", "N"),
        Attribute("packing", "STRING", "of the ternary codes: 2bit (C = 16) or 1.6bit (C = 20)"),
        Attribute("layout_version", "INT", "1"),
    ),
    output_width="out_features",
)
QUANTIZED_MATMUL = Operator(
    name="QuantizedMatMul",
    doc="A linear layer, y = W x + bias for every token (row) of x, whose weights are bfloat16, or integer codes times a scale for "
    "each row or group of inputs. Weights must be initializers.",
    inputs=(
        Input("x", "float", None, "[*, K], rank 1 to 4; a token is a row"),
        Input("weight", "uint8", 3, "[ceil(N/16), ceil(K/C), 64]"),
        Input("scale", "bfloat16", 3, "[ceil(N/16), G, 16]; absent for bf16", is_optional=True),
        Input("bias", "float", 1, "[N]", is_optional=True),
    ),
    attributes=(
        Attribute("in_features", "INT", "K"),
        Attribute("out_features", "INT", "N"),
        Attribute("format", "STRING", "bf16 (C = 2), int8 (C = 4) or int4 (C = 8)"),
        Attribute("group_size", "INT", "inputs that share a scale: 32, 64, 128 or 256 for int4, else 0"),
        Attribute("layout_version", "INT", "1"),
    ),
    output_width="out_features",
)
OPERATORS = (TERNARY_MOE, TERNARY_MATMUL, QUANTIZED_MATMUL)


def schema(operator: Operator) -> OpSchema:
    """A schema with type and shape inference, not registered."""
    result = OpSchema(
        operator.name,
        DOMAIN,
        VERSION,
        operator.doc,
        inputs=[_input(item) for item in operator.inputs],
        outputs=[OpSchema.FormalParameter("y", "tensor(float)", _output_description(operator))],
        attributes=[
            OpSchema.Attribute(item.name, OpSchema.AttrType[item.type], item.description, required=True)
            for item in operator.attributes
        ],
        node_determinism=OpSchema.NodeDeterminism.Deterministic,
    )
    result.set_type_and_shape_inference_function(lambda context: _infer(operator, context))
    return result


def register() -> None:
    """Makes the operators of `OPERATORS` known to onnx's checker and shape inference in this process.

    Once they are, it does nothing. ONNX Runtime does not read these schemas: it needs the plugin.
    """
    for operator in OPERATORS:
        if not onnx.defs.has(operator.name, VERSION, DOMAIN):
            onnx.defs.register_schema(schema(operator))


@contextmanager
def registered() -> Iterator[None]:
    """Within, the operators are known as after `register`; those that were not before are unknown again afterwards."""
    new = [operator for operator in OPERATORS if not onnx.defs.has(operator.name, VERSION, DOMAIN)]
    register()
    try:
        yield
    finally:
        for operator in new:
            onnx.defs.deregister_schema(operator.name, VERSION, DOMAIN)


def _input(item: Input) -> OpSchema.FormalParameter:
    option = OpSchema.FormalParameterOption
    return OpSchema.FormalParameter(
        item.name,
        f"tensor({item.dtype})",
        item.description,
        param_option=option.Optional if item.is_optional else option.Single,
    )


def _output_description(operator: Operator) -> str:
    return "as x" if operator.output_width is None else f"as x, but {operator.output_width} wide"


def _infer(operator: Operator, context: Any) -> None:
    """Type and shape of y, and the ranks of the inputs; what an input holds is for the operator itself to check.

    Raises:
        InferenceError: an input has another rank, or x has not the width that the weights are made for.
    """
    for index, item in enumerate(operator.inputs):
        shape = _shape(context, index)
        if shape is None:
            continue
        ranks = range(1, MAX_TOKEN_RANK + 1) if item.rank is None else (item.rank,)
        if len(shape) not in ranks:
            expected = " to ".join(str(rank) for rank in sorted({ranks[0], ranks[-1]}))
            raise InferenceError(f"mote::{operator.name}: {item.name} has rank {len(shape)}, expected {expected}")
    y = TypeProto()
    y.tensor_type.elem_type = onnx.TensorProto.FLOAT
    x = _shape(context, 0)
    if x is not None:
        _check_width(operator, context, x[-1])
        y.tensor_type.shape.dim.extend(x)
        if operator.output_width is not None:
            del y.tensor_type.shape.dim[-1]
            y.tensor_type.shape.dim.add(dim_value=_integer(context, operator.output_width))
    context.set_output_type(0, y)


def _check_width(operator: Operator, context: Any, width: Any) -> None:
    """x against the router, or against in_features."""
    if operator is TERNARY_MOE:
        router = _shape(context, 1)
        expected = router[1].dim_value if router is not None else 0
    else:
        expected = _integer(context, "in_features")
    if width.dim_value and expected and width.dim_value != expected:
        raise InferenceError(
            f"mote::{operator.name}: the last dimension of x is {width.dim_value}, expected {expected}"
        )


def _shape(context: Any, index: int) -> Sequence[Any] | None:
    """Dimensions of an input, or None where it is absent or its shape unknown."""
    if index >= context.get_num_inputs() or not context.has_input(index):
        return None
    kind = context.get_input_type(index)
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dimensions: Sequence[Any] = kind.tensor_type.shape.dim
    return dimensions


def _integer(context: Any, name: str) -> int:
    attribute: AttributeProto = context.get_attribute(name)
    return int(attribute.i)
