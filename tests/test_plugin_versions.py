"""The plugin in other versions of ONNX Runtime, each in a folder and a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from operator_cases import CASES, assert_same_bits, onnx_model, reference

from mote_runtime import get_library_path

TOO_OLD = ["1.15.0", "1.16.3"]
# The last two are on either side of a fault: before 1.24, inferring shapes beside an absent input ends the process.
OLD_ENOUGH = ["1.17.0", "1.17.1", "1.20.1", "1.23.2", "1.24.4"]
INFERS_BESIDE_ABSENT_INPUTS = ["1.24.4"]
# ONNX Runtime works with NumPy 2 since 1.19, and with this one in every version here.
NUMPY = "numpy==1.26.*"

RUN = """
import json, sys
import numpy as np
import onnxruntime as ort
library, folder = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = 2
try:
    options.register_custom_ops_library(library)
except Exception as error:
    print(json.dumps({"version": ort.__version__, "error": str(error)}))
    sys.exit()
shapes = {}
for case in json.load(open(folder + "/cases.json")):
    session = ort.InferenceSession(f"{folder}/{case}.onnx", options, providers=["CPUExecutionProvider"])
    shapes[case] = session.get_outputs()[0].shape
    np.save(f"{folder}/{case}.y.npy", session.run(None, {"x": np.load(f"{folder}/{case}.npy")})[0])
try:
    ort.InferenceSession(folder + "/broken.onnx", options, providers=["CPUExecutionProvider"])
except Exception as error:
    print(json.dumps({"version": ort.__version__, "broken": str(error), "shapes": shapes}))
"""


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mote"


def installed(version: str) -> Path:
    """A folder with this ONNX Runtime and a NumPy for it, kept between runs outside of the repository."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    target = cache_folder() / f"onnxruntime-{version}-{python}"
    if target.is_dir():
        return target
    cache_folder().mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache_folder()))
    try:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        result = subprocess.run(
            [*command, "--target", unfinished, f"onnxruntime=={version}", NUMPY], capture_output=True, text=True
        )
        if result.returncode != 0:
            pytest.skip(f"pip cannot install onnxruntime {version} here: {result.stderr.strip().splitlines()[-1]}")
        if not target.is_dir():  # another worker may have been faster
            unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for case in CASES:
        x = case.tokens()
        shape = (*(f"d{axis}" for axis in range(x.ndim - 1)), x.shape[-1])
        onnx.save(onnx_model(case.layer, shape), folder / f"{case.name}.onnx")
        np.save(folder / f"{case.name}.npy", x)
    onnx.save(onnx_model(CASES[0].layer.with_attributes(top_k=9), ("n", 64)), folder / "broken.onnx")
    (folder / "cases.json").write_text(json.dumps([case.name for case in CASES]))
    return folder


def run_in(version: str, folder: Path) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(installed(version)), "ORT_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(
        [sys.executable, "-c", RUN, get_library_path("onnxruntime"), folder],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["version"] == version
    return answer


@pytest.mark.versions
@pytest.mark.parametrize("version", TOO_OLD)
def test_an_older_runtime_gets_a_clear_error(version: str, models: Path) -> None:
    answer = run_in(version, models)
    assert f"mote needs ONNX Runtime 1.17 or newer, and this is {version}" in answer["error"]


@pytest.mark.versions
@pytest.mark.parametrize("version", OLD_ENOUGH)
def test_bits_are_the_same_in_every_version(version: str, models: Path) -> None:
    answer = run_in(version, models)
    for case in CASES:
        assert_same_bits(np.load(models / f"{case.name}.y.npy"), reference(case.layer, case.tokens()))
        width = case.layer.attributes.get("out_features", case.layer.hidden_size)
        inferred = [*(f"d{axis}" for axis in range(len(case.shape) - 1)), width]
        knows_shape = case.layer.op_type == "TernaryMatMul" or version in INFERS_BESIDE_ABSENT_INPUTS
        assert answer["shapes"][case.name] == (inferred if knows_shape else [])
    assert "mote::TernaryMoE node 'moe': top_k is 9" in answer["broken"]
