"""The names of a trace: stages, operators by one vocabulary for all runtimes, and the runtimes' own names for them."""

import re

# Stages, in the order of an answer; a decode step is named with its number.
LOAD, WARM_UP, ANSWER = "load", "warm-up", "answer"
PHASES_ANSWER = "answer, phases only"  # where operators and phases were recorded in different answers
TOKENIZE, IMAGE_ENCODE, EMBED, PREFILL, DECODE = "tokenize", "image encode", "embed", "prefill", "decode step"

TERNARY_MOE, TERNARY_MATMUL, QUANTIZED_MATMUL = "TernaryMoE", "TernaryMatMul", "QuantizedMatMul"
OURS = (TERNARY_MOE, TERNARY_MATMUL, QUANTIZED_MATMUL)
# Operators that read an unknown part of their stored tensors: rows of a table, the experts that were chosen.
READ_IN_PART = (*OURS, "Gather", "Attention")
PRODUCTS = ("MatMul", "Convolution")

# What a runtime calls an operator, in lower case without domain and overload, and what a trace calls it.
_OPERATORS = {
    "ternarymoe": TERNARY_MOE,
    "ternary_moe": TERNARY_MOE,
    "ternarymatmul": TERNARY_MATMUL,
    "ternary_matmul": TERNARY_MATMUL,
    "quantizedmatmul": QUANTIZED_MATMUL,
    "quantized_matmul": QUANTIZED_MATMUL,
    "groupqueryattention": "Attention",
    "multiheadattention": "Attention",
    "attention": "Attention",
    "custom_sdpa": "Attention",
    "update_cache": "CacheUpdate",
    "matmul": "MatMul",
    "fusedmatmul": "MatMul",
    "gemm": "MatMul",
    "mm": "MatMul",
    "bmm": "MatMul",
    "linear": "MatMul",
    "addmm": "MatMul",
    "fully connected": "MatMul",
    "batch matrix multiply": "MatMul",
    "matmulnbits": "MatMul",
    "conv": "Convolution",
    "fusedconv": "Convolution",
    "convolution": "Convolution",
    "add": "Add",
    "sub": "Subtract",
    "subtract": "Subtract",
    "mul": "Multiply",
    "multiply": "Multiply",
    "div": "Divide",
    "divide": "Divide",
    "pow": "Power",
    "square": "Power",
    "sqrt": "SquareRoot",
    "square root": "SquareRoot",
    "rsqrt": "ReciprocalSquareRoot",
    "reciprocal square root": "ReciprocalSquareRoot",
    "reciprocal": "Reciprocal",
    "reducemean": "Mean",
    "mean": "Mean",
    "reducesum": "Sum",
    "sum": "Sum",
    "softmax": "Softmax",
    "_softmax": "Softmax",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "gelu": "Gelu",
    "fastgelu": "Gelu",
    "biasgelu": "Gelu",
    "layernormalization": "LayerNorm",
    "skiplayernormalization": "LayerNorm",
    "native_layer_norm": "LayerNorm",
    "rmsnorm": "RmsNorm",
    "simplifiedlayernormalization": "RmsNorm",
    "skipsimplifiedlayernormalization": "RmsNorm",
    "gather": "Gather",
    "embedding": "Gather",
    "index": "Gather",
    "index_select": "Gather",
    "scatternd": "Scatter",
    "nonzero": "NonZero",
    "equal": "Equal",
    "eq": "Equal",
    "where": "Where",
    "cast": "Cast",
    "_to_copy": "Cast",
    "_to_dim_order_copy": "Cast",
    "shape": "Shape",
    "sym_size": "Shape",
    "_local_scalar_dense": "Shape",
    "concat": "Concat",
    "cat": "Concat",
    "slice": "Slice",
    "slice_copy": "Slice",
    "select_copy": "Slice",
    "split": "Split",
    "split_with_sizes_copy": "Split",
    "transpose": "Transpose",
    "permute_copy": "Transpose",
    "reshape": "Reshape",
    "static reshape": "Reshape",
    "view_copy": "Reshape",
    "et_view": "Reshape",
    "unsqueeze": "Reshape",
    "unsqueeze_copy": "Reshape",
    "squeeze": "Reshape",
    "squeeze_copy": "Reshape",
    "expand": "Expand",
    "expand_copy": "Expand",
    "identity": "Copy",
    "copy": "Copy",
    "clone": "Copy",
    "logical_not": "Not",
    "not": "Not",
}

_NATIVE_CALL = re.compile(r"^native_call_")
_XNNPACK_DETAILS = re.compile(r"\s*\(.*$|\s*#\d+$", re.DOTALL)
_MAX_NAME = 100


def operator(runtime_name: str) -> str:
    """The trace's name of an operator: from the vocabulary, or else the runtime's own name, without details."""
    name = _NATIVE_CALL.sub("", runtime_name.strip())
    name = _XNNPACK_DETAILS.sub("", name)
    name = name.rsplit("::", 1)[-1].split(".", 1)[0].strip() or "unnamed"
    return _OPERATORS.get(name.lower(), name[:_MAX_NAME])


def decode_step(number: int) -> str:
    """The name of a decode step, from 1."""
    return f"{DECODE} {number}"
