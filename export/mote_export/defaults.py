"""Defaults of an export, apart from the code that needs torch, so that `mote-export --help` does not."""

DEFAULT_OPSET = 21
OPSETS = range(18, 24)  # ONNX operator sets that exports were tested with
DEFAULT_RTOL = 0.02  # of mote_export.verify.relative_difference
DEFAULT_CONTEXT = 4096  # positions in the KV cache, where the model allows more
DEFAULT_PACKING = "2bit"  # of the ternary experts
DEFAULT_SHARED_EXPERT = "bf16"  # the format that the shared expert is stored in
DEFAULT_SHARED_GROUP_SIZE = 128  # weights with a scale of their own, for int4
QUANTIZERS = ("rtn", "hqq")  # keys of mote_export.quantize.METHODS
DEFAULT_QUANTIZER = "rtn"
LINEAR_FORMATS = ("float32", "bf16", "int8", "int4")  # of linear layers outside of the experts, and of the embedding
DEFAULT_KV_CACHE = "float32"  # one of mote_runtime.manifest.KV_CACHES
EXPERT_FORMATS = ("float32", "int8", "int4", "int3")  # of routed experts in full precision
DEFAULT_LINEAR = DEFAULT_EMBEDDING = DEFAULT_VISION = DEFAULT_FULL_EXPERTS = "float32"
# Ways to store a whole model, the most exact first: options of PackOptions, by name.
PRESETS: dict[str, dict[str, str | int]] = {
    "lossless": {"shared_expert": "bf16", "linear": "bf16", "embedding": "bf16", "vision": "bf16"},
    "balanced": {"shared_expert": "int8", "linear": "int8", "embedding": "int8", "vision": "int8"},
    # Groups of 256: with 128, the scales of the shared expert alone take the experts a percent beyond what their bits say.
    "mobile": {
        "shared_expert": "int4",
        "shared_group_size": 256,
        "linear": "int4",
        "embedding": "int4",
        "vision": "int8",
    },
}
# What --memory-budget tries, in this order.
BUDGET_STEPS = {**PRESETS, "mobile with --packing 1.6bit": {**PRESETS["mobile"], "packing": "1.6bit"}}
