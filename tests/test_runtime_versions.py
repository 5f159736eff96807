"""Whole answers in other versions of ONNX Runtime, each in a folder and a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx_export as tiny
from test_plugin_versions import installed

import mote_runtime

# The lowest that pyproject.toml allows, and one whose bindings keep no array alive.
VERSIONS = ["1.18.0", "1.27.0"]
FORCED = list(range(40, 60))
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)

RUN = """
import json, sys
import numpy as np
import onnxruntime
import mote_runtime
folder, results, forced = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with mote_runtime.load(folder, threads=1) as pipeline:
    logits = pipeline.step_logits(pipeline.tokenizer.encode_prompt("hi"), forced)
    generation = pipeline.generate(np.load(results + "/picture.npy"), "hi", max_new_tokens=20)
    text = "".join(generation)
np.save(results + "/logits.npy", logits)
print(json.dumps({"version": onnxruntime.__version__, "text": text, "ids": generation.answer().token_ids}))
"""


@pytest.mark.versions
@pytest.mark.parametrize("version", VERSIONS)
def test_answers_are_the_same_in_every_version(version: str, tmp_path: Path) -> None:
    folder = tiny.write_export(tmp_path / "export")
    np.save(tmp_path / "picture.npy", PICTURE)
    environment = os.environ | {"PYTHONPATH": str(installed(version))}
    command = [sys.executable, "-c", RUN, str(folder), str(tmp_path), json.dumps(FORCED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with mote_runtime.load(folder, threads=1) as pipeline:
        logits = pipeline.step_logits(pipeline.tokenizer.encode_prompt("hi"), FORCED)
        answer = pipeline.answer(PICTURE, "hi", max_new_tokens=20)
    found = json.loads(done.stdout)
    assert found == {"version": version, "text": answer.text, "ids": list(answer.token_ids)}
    assert np.abs(np.load(tmp_path / "logits.npy") - logits).max() < 1e-5
