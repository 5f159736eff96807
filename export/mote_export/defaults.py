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
LINEAR_FORMATS = ("float32", "int8", "int4")  # of stock linear layers and of the embedding
EXPERT_FORMATS = ("float32", "int8", "int4", "int3")  # of routed experts in full precision
DEFAULT_LINEAR = DEFAULT_EMBEDDING = DEFAULT_FULL_EXPERTS = "float32"
