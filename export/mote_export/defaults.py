"""Defaults of an export, apart from the code that needs torch, so that `mote-export --help` does not."""

DEFAULT_OPSET = 21
DEFAULT_RTOL = 0.02  # of mote_export.verify.relative_difference
DEFAULT_CONTEXT = 4096  # positions in the KV cache, where the model allows more
