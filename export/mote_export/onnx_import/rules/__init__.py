"""One rule a file: what is looked for (`pattern`), why it may not be rewritten (`check`), and what takes its place (`rewrite`)."""

from mote_export.onnx_import.rules.gemm import GemmToTernaryMatMul
from mote_export.onnx_import.rules.integer_codes import IntegerCodesToTernaryMatMul
from mote_export.onnx_import.rules.matmul import MatMulToTernaryMatMul
from mote_export.onnx_import.rules.scale import ScaleIntoTernaryMatMul

# In this order, each over the whole graph: a product of integer codes is also a MatMul, and a factor behind it needs the new node.
RULES = ((IntegerCodesToTernaryMatMul,), (MatMulToTernaryMatMul, GemmToTernaryMatMul), (ScaleIntoTernaryMatMul,))

__all__ = ["RULES"]
