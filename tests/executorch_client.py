"""A program of ExecuTorch's LLM runners and nothing of mote but its plugin: run by test_client_executorch.py in a process of its
own, as operators, thread pool and the log on the C library's stdout belong to a process.

python executorch_client.py FOLDER PLUGIN JOBS.json PIXELS.npy ANSWERS.json

PLUGIN may be empty. A job is {"runner": "multimodal" or "text", "segments": [{"text": ...} or {"tokens": [...]} or {"image": row of
PIXELS}], "max_new_tokens": ..., "reset": ...}; its answer {"pieces": [...], "prompt_tokens": ..., "error": ...}.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import executorch.extension.llm.custom_ops.custom_ops
import executorch.extension.pybindings.portable_lib  # noqa: F401 - the registry that the plugin shares
import numpy as np
import torch
from executorch.extension.llm.runner import (
    GenerationConfig,
    MultimodalRunner,
    TextLLMRunner,
    make_image_input,
    make_text_input,
    make_token_input,
)


def segment(part: dict[str, Any], pixels: np.ndarray) -> Any:
    if "image" in part:
        return make_image_input(torch.from_numpy(pixels[part["image"]]))
    return make_token_input(part["tokens"]) if "tokens" in part else make_text_input(part["text"])


def run(runner: Any, job: dict[str, Any], pixels: np.ndarray) -> dict[str, Any]:
    pieces: list[str] = []
    counts: list[int] = []
    config = GenerationConfig(echo=False, max_new_tokens=job["max_new_tokens"], temperature=0.0)
    if job.get("reset", True):
        runner.reset()
    segments = [segment(part, pixels) for part in job["segments"]]
    prompt = segments if job["runner"] == "multimodal" else job["segments"][0]["text"]
    try:
        runner.generate(prompt, config, pieces.append, lambda stats: counts.append(stats.num_prompt_tokens))
    except (RuntimeError, UnicodeDecodeError) as error:
        return {"pieces": pieces, "error": f"{type(error).__name__}: {error}"}
    return {"pieces": pieces, "prompt_tokens": counts[0], "error": None}


def main(folder: Path, plugin: str, jobs: Path, pixels: Path, answers: Path) -> None:
    if plugin:
        ctypes.CDLL(plugin, mode=ctypes.RTLD_GLOBAL)
    files = str(folder / "model.pte"), str(folder / "tokenizer.json")
    wanted = json.loads(jobs.read_text())
    runners = {"multimodal": MultimodalRunner(*files), "text": TextLLMRunner(*files)}
    found = [run(runners[job["runner"]], job, np.load(pixels)) for job in wanted]
    answers.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:]))
