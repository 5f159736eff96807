"""Opens one export and answers, in a process that has done nothing else, and prints what that took as JSON.

python -m benchmarks.models.worker FOLDER --runtime RUNTIME [--steps 48]
python -m benchmarks.models.worker FOLDER --runtime RUNTIME --tokens 16      (prints the ids of an answer only)

With ONNX Runtime no torch is loaded; with ExecuTorch it is, as its Python interface wants it.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mote_runtime import load
from mote_runtime.generation import TokenLoop
from mote_runtime.pipeline import Pipeline
from mote_runtime.profile.memory import MemorySampler, resident_bytes

from .shapes import SMALL_IMAGE_TOKENS, TEXT_TOKENS, THREADS

LETTER = "a"  # a token of the byte tokenizer
WARM_UP = 4
REPEATS = 3


def prompt_of(pipeline: Pipeline, tokens: int, images: int) -> str:
    """A question that makes a prompt of so many tokens, those of the pictures and of the frame included."""
    frame = len(pipeline.tokenizer.encode_prompt(LETTER, images)) - 1
    prompt = LETTER * max(1, tokens - frame)
    found = len(pipeline.tokenizer.encode_prompt(prompt, images))
    if found != tokens:
        raise SystemExit(f"the shortest prompt has {found} tokens, expected {tokens}")
    return prompt


def picture_of(pipeline: Pipeline) -> Any:
    """Random pixels, of another size than the model takes, as pictures are."""
    image = pipeline.manifest.image
    assert image is not None
    return np.random.default_rng(0).integers(0, 256, (2 * image.height, 2 * image.width, 3), dtype=np.uint8)


def run_through(loop: TokenLoop) -> list[float]:
    """Seconds of every step of an answer, the first with the prompt."""
    steps = []
    start = time.perf_counter()
    for _ in loop:
        end = time.perf_counter()
        steps.append(end - start)
        start = end
    return steps


def answer(pipeline: Pipeline, prompt: str, picture: Any, tokens: int) -> dict[str, Any]:
    """Seconds of the parts of one answer. To the first token counts from the call, with all work on the picture."""
    loop, timings = pipeline.measured_tokens(prompt, picture, tokens, stop=False)
    steps = run_through(loop)
    prefill = (timings.prompt_eval_end_ms - timings.image_encode_end_ms) / 1e3
    return {
        "prompt_tokens": timings.prompt_tokens,
        "first_token": (timings.first_token_ms - timings.inference_start_ms) / 1e3,
        "image": (timings.image_encode_end_ms - timings.token_encode_end_ms) / 1e3 if picture is not None else 0.0,
        "prefill": prefill,
        "prefill_tokens_s": timings.prompt_tokens / prefill,
        "steps": steps[1:],
    }


def resident() -> dict[str, int]:
    anonymous, file = resident_bytes()
    return {"anonymous": anonymous, "file": file}


def open_and_measure(folder: Path, runtime: str, steps: int) -> dict[str, Any]:
    importlib.import_module(f"mote_runtime.backends.{runtime}")
    memory = {"before": resident()}
    with MemorySampler() as sampler:
        start = time.perf_counter()
        pipeline = load(folder, runtime=runtime, threads=THREADS, verify=False)
        opened = time.perf_counter()
        memory["opened"] = resident()
        pipeline.generate_ids([pipeline.tokenizer.encode_prompt(LETTER)[0]], max_new_tokens=1)
        first = time.perf_counter()
        memory["first_token"] = resident()
        spec, picture = pipeline.manifest.model, picture_of(pipeline)
        image_tokens = spec.num_image_tokens or 0
        prompt = prompt_of(pipeline, image_tokens + TEXT_TOKENS, 1)
        cold = answer(pipeline, prompt, picture, WARM_UP)
        memory["answered"] = resident()
    # Sampling is over: it would take a share of the two threads.
    warm = [answer(pipeline, prompt, picture, WARM_UP) for _ in range(REPEATS)]
    decode = answer(pipeline, prompt, picture, steps + 1)["steps"]
    text = prompt_of(pipeline, SMALL_IMAGE_TOKENS + TEXT_TOKENS, 0)
    short = [answer(pipeline, text, None, WARM_UP) for _ in range(REPEATS)]
    memory["steady"] = resident()
    pipeline.close()
    seen = sampler.memory()
    return {
        "open_seconds": opened - start,
        "first_text_token_seconds": first - opened,
        "memory": memory,
        "peak_anonymous": seen.peak_anonymous_bytes,
        "peak_file": seen.peak_file_bytes,
        "first_answer_seconds": cold["first_token"],
        "prompt_tokens": warm[0]["prompt_tokens"],
        "image_tokens": image_tokens,
        **{name: statistics.median(one[name] for one in warm) for name in ("first_token", "image", "prefill")},
        "prefill_tokens_s": statistics.median(one["prefill_tokens_s"] for one in warm),
        "short_prompt_tokens": short[0]["prompt_tokens"],
        "short_first_token": statistics.median(one["first_token"] for one in short),
        "step_seconds": statistics.median(decode),
        "step_p10_p90": [float(value) for value in np.percentile(decode, (10, 90))],
        "steps": len(decode),
        "torch_loaded": "torch" in sys.modules,
    }


def print_tokens(folder: Path, runtime: str, tokens: int) -> None:
    with load(folder, runtime=runtime, threads=THREADS, verify=False) as pipeline:
        images = pipeline.manifest.model.num_image_tokens or 0
        prompt = prompt_of(pipeline, images + TEXT_TOKENS, 1)
        loop, _ = pipeline.measured_tokens(prompt, picture_of(pipeline), tokens, stop=False)
        print(json.dumps(list(loop)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--tokens", type=int)
    arguments = parser.parse_args()
    if arguments.tokens:
        print_tokens(arguments.folder, arguments.runtime, arguments.tokens)
    else:
        print(json.dumps(open_and_measure(arguments.folder, arguments.runtime, arguments.steps)))


if __name__ == "__main__":
    main()
