"""Milliseconds of ONNX Runtime's attention over a KV cache in float32 and in int8, of a layer with the heads of Qwen2.5-1.5B.

One thread, and its processor time, so that other work on the machine disturbs less.

python benchmarks/kv_cache.py [--runs N]
"""

import argparse
import time

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

QUERY_HEADS, KV_HEADS, HEAD_DIM = 12, 2, 128
CONTEXT = 4608
CALLS = ((1, 256), (1, 4096), (512, 512), (512, 4096))  # positions of a call, and of the cache behind it
SCALE = 4 / 127


def session(is_int8: bool) -> onnxruntime.InferenceSession:
    """One GroupQueryAttention node with rotary embedding inside, as mote-export writes it."""
    angles = np.outer(np.arange(CONTEXT), 1e6 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)).astype(np.float32)
    constants = {"cos": np.cos(angles), "sin": np.sin(angles)}
    attributes: dict[str, int | str] = {"num_heads": QUERY_HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1}
    inputs = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total_length", "cos", "sin"]
    if is_int8:
        constants["scale"] = np.full((1, KV_HEADS, 1, HEAD_DIM), SCALE, np.float32)
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        inputs += ["", "", "", "scale", "scale"]
    outputs = ["output", "present_key", "present_value"]
    cache = TensorProto.INT8 if is_int8 else TensorProto.FLOAT
    types = dict.fromkeys(("query", "key", "value"), (TensorProto.FLOAT, [1, "length", None]))
    types |= dict.fromkeys(("past_key", "past_value"), (cache, [1, KV_HEADS, "past", HEAD_DIM]))
    types |= dict.fromkeys(("seqlens_k", "total_length"), (TensorProto.INT32, [1]))
    graph = helper.make_graph(
        [helper.make_node("GroupQueryAttention", inputs, outputs, domain="com.microsoft", **attributes)],
        "attention",
        [helper.make_tensor_value_info(name, *item) for name, item in types.items()],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT if name == "output" else cache, None)
            for name in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def milliseconds(layer: onnxruntime.InferenceSession, is_int8: bool, length: int, total: int, runs: int) -> float:
    """The fastest of some calls that append `length` positions to a cache of `total` with them, in place."""
    random = np.random.default_rng(0)

    def floats(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape, dtype=np.float32)

    binding = layer.io_binding()
    for name, heads in (("query", QUERY_HEADS), ("key", KV_HEADS), ("value", KV_HEADS)):
        binding.bind_cpu_input(name, floats(1, length, heads * HEAD_DIM))
    for name, value in (("seqlens_k", total - 1), ("total_length", total)):
        binding.bind_cpu_input(name, np.array([value], np.int32))
    for name in ("key", "value"):
        values = floats(1, KV_HEADS, CONTEXT, HEAD_DIM)
        cache = onnxruntime.OrtValue.ortvalue_from_numpy((values / SCALE).astype(np.int8) if is_int8 else values)
        binding.bind_ortvalue_input(f"past_{name}", cache)
        binding.bind_ortvalue_output(f"present_{name}", cache)
    binding.bind_output("output")
    layer.run_with_iobinding(binding)
    times = []
    for _ in range(runs if length == 1 else max(3, runs // 30)):
        begin = time.process_time()
        layer.run_with_iobinding(binding)
        times.append(time.process_time() - begin)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="ONNX Runtime's attention of one layer over caches of both types.")
    parser.add_argument(
        "--runs", type=int, default=200, help="calls of a token, of which the fastest counts (default: %(default)s)"
    )
    arguments = parser.parse_args()
    print("| positions of a call | of the cache | float32, ms | int8, ms |\n|---|---|---|---|")
    layers = {is_int8: session(is_int8) for is_int8 in (False, True)}
    for length, total in CALLS:
        found = [milliseconds(layers[kind], kind, length, total, arguments.runs) for kind in (False, True)]
        print(f"| {length} | {total:,} | {found[0]:.3f} | {found[1]:.3f} |")


if __name__ == "__main__":
    main()
