"""A model of real shape, with random weights, from checkpoint to both runtimes: what an export costs, and that it runs.

    python benchmarks/real_shape.py [--layers 2] [--vocab 151936]

Decoder of Qwen2.5-1.5B's shape (hidden 1536, intermediate 8960, 12 heads, 2 key-value heads) with 4 ternary experts a layer,
a SigLIP tower of hidden 768. Writes benchmarks/results/real_shape.md. Needs about 16 GB of memory and 8 GB of disk.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen2Config, SiglipVisionConfig

from mote_export.checkpoint import Checkpoint, save_model_pt
from mote_export.exporter import ExportResult, export
from mote_runtime import load

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny import random_checkpoint

RESULTS = Path(__file__).parent / "results"
RUNTIMES = ("onnxruntime", "executorch")
PROMPT = "Describe the picture. " * 8
NEW_TOKENS = 32
GIB = 1 << 30


def real_shape_checkpoint(layers: int, vocab_size: int) -> Checkpoint:
    """Random weights; every expert differs."""
    vision = SiglipVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=12, image_size=224, patch_size=16,
        vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=layers, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=vocab_size, max_position_embeddings=1024, rope_theta=1e6,
    )  # fmt: skip
    return random_checkpoint("real_shape", vision, text)


def run(folder: Path, runtime: str) -> str:
    """A table row: loading, prefill and decode speed of one question about a picture."""
    picture = torch.randint(0, 256, (224, 224, 3), dtype=torch.uint8).numpy()
    start = time.perf_counter()
    with load(folder, runtime=runtime, threads=2) as pipeline:
        loaded = time.perf_counter() - start
        pipeline.answer(picture, PROMPT, max_new_tokens=4)  # warm-up
        timings = pipeline.answer(picture, PROMPT, max_new_tokens=NEW_TOKENS).timings
    return (
        f"| {runtime} | {loaded:.1f} | {timings['prompt_tokens']} | {timings['prefill_token_per_sec']:.0f} "
        f"| {timings['generated_tokens']} | {timings['decode_token_per_sec']:.1f} |"
    )


def report(arguments: argparse.Namespace, results: list[ExportResult], seconds: float, rows: list[str]) -> str:
    memory = results[0].memory
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    checks = [
        f"- {result.target}: {sum(result.files.values()) / GIB:.2f} GiB; "
        f"{check.greedy_tokens_compared - check.greedy_ties} of {check.greedy_tokens_compared} greedy tokens equal torch's, "
        f"logits differ by at most {check.max_relative_difference:.2g} of their standard deviation"
        for result in results
        if (check := result.verification)
    ]
    return "\n".join(
        [
            f"# A model of real shape: hidden 1536, intermediate 8960, 4 experts, {arguments.layers} layers, "
            f"vocabulary {arguments.vocab}",
            "",
            f"Export to both targets, verified: {seconds:.0f} s, peak memory {peak / GIB:.1f} GiB. Experts: "
            f"{memory.packed / GIB:.3f} GiB packed, {memory.shared / GIB:.3f} GiB shared ({memory.shared_bits:.0f} bits a "
            f"weight); in BF16 without ternary weights they would take {memory.full_precision / GIB:.3f} GiB.",
            "",
            *checks,
            "",
            "| runtime, 2 threads | load, s | prompt tokens | prefill, tokens/s | generated | decode, tokens/s |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=151936, help="size of the vocabulary (default: Qwen2.5's, 151936)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the checkpoint and the exports here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        checkpoint = real_shape_checkpoint(arguments.layers, arguments.vocab)
        save_model_pt(folder / "model.pt", checkpoint.model.bfloat16(), checkpoint.files)
        del checkpoint
        start = time.perf_counter()
        results = export(folder / "model.pt", folder / "export", ["onnx", "executorch"])
        seconds = time.perf_counter() - start
        rows = [run(folder / "export", runtime) for runtime in RUNTIMES]
    text = report(arguments, results, seconds, rows)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "real_shape.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
