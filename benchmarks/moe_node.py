"""The MoE node of a real shape in ONNX Runtime: `mote::TernaryMoE` beside the stock `QMoE` with 2-bit blocks of 128.

    python benchmarks/moe_node.py            (make bench; about two minutes)

Shape of Qwen2.5-1.5B: hidden 1536, intermediate 8960, 4 experts, top-1; 4 layers in a chain and inputs that change from run to
run, so that the experts (165 MB at 2 bits) do not stay in the cache. Both sides include the router. Times are per layer;
medians over turns of both operators in one process. Writes benchmarks/results/moe_node.json and .md.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mote_export.packing import LAYOUT_VERSION, pack_2bit, pack_gate_up
from mote_runtime import get_library_path

HIDDEN, INTERMEDIATE, EXPERTS, LAYERS = 1536, 8960, 4, 4
BLOCK = 128
INPUTS = 16  # different tokens, so that every expert is used
TURNS = 4
WARM_UP = 2
RESULTS = Path(__file__).parent / "results"
Node = tuple[onnx.NodeProto, list[onnx.TensorProto]]


@dataclass
class Measurement:
    """Milliseconds per layer."""

    operator: str
    tokens: int
    threads: int
    median_ms: float
    min_ms: float
    p90_ms: float
    rounds: int


def ternary_layer(rng: np.random.Generator, index: int, x: str, y: str) -> list[Node]:
    """One mote::TernaryMoE node."""
    gate, up = (rng.integers(-1, 2, (EXPERTS, INTERMEDIATE, HIDDEN)).astype(np.int8) for _ in range(2))
    down = rng.integers(-1, 2, (EXPERTS, HIDDEN, INTERMEDIATE)).astype(np.int8)
    arrays = {
        "router": router(rng),
        "gate_up_packed": pack_gate_up(gate, up),
        "gate_up_scale": np.full((EXPERTS, 2), HIDDEN**-0.5, np.float32),
        "down_packed": pack_2bit(down),
        "down_scale": np.full((EXPERTS,), INTERMEDIATE**-0.5, np.float32),
    }
    tensors = [numpy_helper.from_array(array, f"{name}.{index}") for name, array in arrays.items()]
    node = helper.make_node(
        "TernaryMoE", [x, *(tensor.name for tensor in tensors)], [y], domain="mote",
        num_experts=EXPERTS, top_k=1, normalize_topk=0, intermediate_size=INTERMEDIATE,
        activation="silu", packing="2bit", layout_version=LAYOUT_VERSION,
        shared_format="none", shared_group_size=0,
    )  # fmt: skip
    return [(node, tensors)]


def qmoe_layer(rng: np.random.Generator, index: int, x: str, y: str) -> list[Node]:
    """Router as MatMul, and one com.microsoft::QMoE node: SwiGLU with gate and up interleaved, block-wise scales."""
    weight = numpy_helper.from_array(np.ascontiguousarray(router(rng).T), f"router.{index}")
    fc1 = rng.integers(0, 256, (EXPERTS, 2 * INTERMEDIATE, HIDDEN // 4), dtype=np.uint8)
    fc2 = rng.integers(0, 256, (EXPERTS, HIDDEN, INTERMEDIATE // 4), dtype=np.uint8)
    arrays = {
        "fc1": fc1,
        "fc1_scales": np.full((EXPERTS, 2 * INTERMEDIATE, HIDDEN // BLOCK), HIDDEN**-0.5, np.float32),
        "fc2": fc2,
        "fc2_scales": np.full((EXPERTS, HIDDEN, INTERMEDIATE // BLOCK), INTERMEDIATE**-0.5, np.float32),
    }
    tensors = [numpy_helper.from_array(array, f"{name}.{index}") for name, array in arrays.items()]
    names = [tensor.name for tensor in tensors]
    matmul = helper.make_node("MatMul", [x, weight.name], [f"probs.{index}"])
    node = helper.make_node(
        "QMoE", [x, f"probs.{index}", names[0], names[1], "", names[2], names[3]], [y], domain="com.microsoft",
        k=1, expert_weight_bits=2, block_size=BLOCK, activation_type="swiglu", swiglu_fusion=1,
        activation_alpha=1.0, activation_beta=0.0, normalize_routing_weights=0, accuracy_level=4,
    )  # fmt: skip
    return [(matmul, [weight]), (node, tensors)]


def router(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((EXPERTS, HIDDEN), dtype=np.float32)


def build(layer: Callable[[np.random.Generator, int, str, str], list[Node]], path: Path) -> None:
    """A chain of LAYERS layers, x [M, HIDDEN] to y, with external data."""
    rng = np.random.default_rng(0)
    names = ["x", *(f"h.{i}" for i in range(1, LAYERS)), "y"]
    nodes = [node for i in range(LAYERS) for node in layer(rng, i, names[i], names[i + 1])]
    graph = helper.make_graph(
        [node for node, _ in nodes],
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", HIDDEN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", HIDDEN])],
        initializer=[tensor for _, tensors in nodes for tensor in tensors],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("mote", 1), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save_model(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=1024)


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(paths: dict[str, Path], tokens: int, threads: int, rounds: int) -> list[Measurement]:
    """Takes turns between the operators, with one session open at a time: the idle threads of another would spin."""
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((tokens, HIDDEN), dtype=np.float32) for _ in range(INPUTS)]
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(TURNS):
        for name, path in paths.items():
            runtime = session(path, threads)
            for index in range(-WARM_UP, rounds // TURNS):
                start = time.perf_counter()
                runtime.run(None, {"x": inputs[index % INPUTS]})
                if index >= 0:
                    times[name].append((time.perf_counter() - start) * 1e3 / LAYERS)
            del runtime
    return [
        Measurement(
            name, tokens, threads, statistics.median(values), min(values), float(np.percentile(values, 90)), len(values)
        )
        for name, values in times.items()
    ]


def report(measurements: list[Measurement]) -> str:
    lines = [
        f"# The MoE node beside QMoE: hidden {HIDDEN}, intermediate {INTERMEDIATE}, {EXPERTS} experts, top-1",
        "",
        f"{platform.machine()}, {cpu_name()}, {os.cpu_count()} cores; onnxruntime {onnxruntime.__version__}; "
        "milliseconds per layer, median (fastest, 90th percentile).",
        "",
        "| tokens | threads | mote::TernaryMoE | QMoE 2-bit, block 128 | ratio of medians |",
        "|---|---|---|---|---|",
    ]
    by_key = {(m.operator, m.tokens, m.threads): m for m in measurements}
    for tokens, threads in dict.fromkeys((m.tokens, m.threads) for m in measurements):
        ours, theirs = by_key["ternary_moe", tokens, threads], by_key["qmoe", tokens, threads]
        cells = [f"{m.median_ms:.3f} ({m.min_ms:.3f}, {m.p90_ms:.3f})" for m in (ours, theirs)]
        lines.append(f"| {tokens} | {threads} | {cells[0]} | {cells[1]} | {theirs.median_ms / ours.median_ms:.2f} |")
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=120, help="rounds for one token; a tenth of it for 128 (default: 120)"
    )
    arguments = parser.parse_args()
    measurements = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {"ternary_moe": Path(folder) / "ternary_moe.onnx", "qmoe": Path(folder) / "qmoe.onnx"}
        build(ternary_layer, paths["ternary_moe"])
        build(qmoe_layer, paths["qmoe"])
        for tokens, rounds in ((1, arguments.rounds), (128, max(arguments.rounds // 10, TURNS))):
            for threads in (1, 2):
                measurements += measure(paths, tokens, threads, rounds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "moe_node.json").write_text(json.dumps([asdict(m) for m in measurements], indent=2) + "\n")
    text = report(measurements)
    (RESULTS / "moe_node.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
