"""Milliseconds of ONNX Runtime's linear layers by bits and accuracy_level, why mote-export chooses the levels that it does.

python benchmarks/matmul_nbits.py [--size N]
"""

import argparse
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

RUNS = 8
BLOCK = 128
FLOAT32 = 32


def session(bits: int, level: int, size: int) -> onnxruntime.InferenceSession:
    """One layer of size x size on one thread; `bits` 32 is a float32 MatMul."""
    generator = np.random.default_rng(0)
    if bits == FLOAT32:
        weights = {"weight": generator.standard_normal((size, size), dtype=np.float32)}
        node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    else:
        codes = generator.integers(0, 256, (size, size // BLOCK, BLOCK * bits // 8), dtype=np.uint8)
        weights = {"codes": codes, "scale": generator.random((size, size // BLOCK), dtype=np.float32)}
        node = helper.make_node(
            "MatMulNBits",
            ["x", "codes", "scale"],
            ["y"],
            domain="com.microsoft",
            K=size,
            N=size,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=level,
        )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", size])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def milliseconds(layer: onnxruntime.InferenceSession, tokens: int, size: int) -> float:
    """The fastest of some runs."""
    x = np.random.default_rng(1).standard_normal((tokens, size), dtype=np.float32)
    best = float("inf")
    for _ in range(RUNS):
        begin = time.perf_counter()
        layer.run(None, {"x": x})
        best = min(best, time.perf_counter() - begin)
    return 1000 * best


def main() -> None:
    parser = argparse.ArgumentParser(description="ONNX Runtime's linear layers by bits and accuracy_level, one thread.")
    parser.add_argument("--size", type=int, default=1536, help="inputs and outputs (default: %(default)s)")
    size = parser.parse_args().size
    print("| weights | accuracy_level | 1 token, ms | 64 tokens, ms |\n|---|---|---|---|")
    for bits, level in ((FLOAT32, 0), (8, 1), (8, 4), (4, 1), (4, 4)):
        layer = session(bits, level, size)
        one, many = (milliseconds(layer, tokens, size) for tokens in (1, 64))
        print(f"| {bits} bits | {level or ''} | {one:.2f} | {many:.2f} |")


if __name__ == "__main__":
    main()
