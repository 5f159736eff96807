"""Peer (d): ExecuTorch's `llama::quantized_moe_ffn`, int4, in a program of its own.

    python -m benchmarks.layer.executorch_peer --shape 1.5B --tokens 1 128 --threads 1 2

A process of its own, since ExecuTorch's thread pool would run beside ONNX Runtime's. Prints JSON: a list of points, or the reason
why it cannot run. The wheel for x86-64 has no packer for the weights (torchao's is built for ARM only), so the blob is
made here: a header of 64 bytes, then codes, and for each group of a row its scale and its sum.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .measure import Effort, inputs_for, time_rounds
from .shapes import BLOCK, EXPERTS, SHAPES, Shape

_HEADER_BYTES = 64
#: As a code it is -3 and 13 - 16, as a float32 0.046: finite and not denormal wherever it stands in the blob.
_FILL = 0x3D


def blob_bytes(outputs: int, inputs: int) -> int:
    """torchao's universal layout: 4-bit codes, and 8 bytes for each group of a row."""
    return _HEADER_BYTES + outputs * inputs // 2 + outputs * (inputs // BLOCK) * 8


def bytes_of_expert(shape: Shape) -> int:
    return blob_bytes(2 * shape.intermediate, shape.hidden) + blob_bytes(shape.hidden, shape.intermediate)


def export(shape: Shape, max_tokens: int, path: Path) -> None:
    """One layer, tokens dynamic."""
    import torch
    from executorch.exir import EdgeCompileConfig, to_edge
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  (registers the operator)

    h, i = shape.hidden, shape.intermediate

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("router", torch.randn(EXPERTS, h))
            self.register_buffer("bias", torch.empty(0))
            self.register_buffer("w13", torch.full((EXPERTS, blob_bytes(2 * i, h)), _FILL, dtype=torch.uint8))
            self.register_buffer("w2", torch.full((EXPERTS, blob_bytes(h, i)), _FILL, dtype=torch.uint8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.llama.quantized_moe_ffn(
                x, self.router, self.bias, self.w13, self.w2, 1, EXPERTS, i, h, BLOCK, 4, "softmax", 1.0
            )

    tokens = torch.export.Dim("tokens", min=1, max=max(max_tokens, 2))
    program = torch.export.export(Layer().eval(), (torch.randn(2, h),), dynamic_shapes=({0: tokens},))
    edge = to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    path.write_bytes(edge.to_executorch().buffer)


def measure(shape: Shape, tokens: list[int], threads: list[int], effort: Effort) -> list[dict[str, Any]]:
    import torch
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
    from executorch.extension.pybindings import portable_lib

    points = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "moe.pte"
        export(shape, max(tokens), path)
        for thread_count in threads:
            portable_lib._unsafe_reset_threadpool(thread_count)
            module = portable_lib._load_for_executorch(str(path))

            def run(x: np.ndarray, module: Any = module) -> None:
                module.run_method("forward", (torch.from_numpy(x),))

            for count in tokens:
                seconds = [time for _, time in time_rounds(run, inputs_for(shape, count), effort)]
                points.append({"shape": shape.name, "tokens": count, "threads": thread_count, "layer_seconds": seconds})
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", required=True)
    parser.add_argument("--threads", type=int, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    effort = Effort(turns=1, min_rounds=arguments.rounds, min_seconds=0)
    result: dict[str, Any]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            result = {"points": measure(SHAPES[arguments.shape], arguments.tokens, arguments.threads, effort)}
    except Exception as error:
        result = {"failure": f"{type(error).__name__}: {error}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
