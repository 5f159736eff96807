"""Up-cycling takes memory for a few blocks, not for a model: measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import companion_files, tiny_text_config, write_dense
from transformers import AutoModelForCausalLM, Qwen2Config

from mote_export.checkpoint.tensor_files import TensorSpec
from mote_export.checkpoint.tensor_writer import TensorWriter

MIB = 1 << 20
ALLOWED = 40 * MIB  # ten blocks
PROGRAM = """
import sys
from pathlib import Path
from mote_export.upcycle_folder import UpcycleOptions, upcycle_folder

def memory(name):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":")]
    return int(line.split()[1]) * 1024

warm_up, base, output, dtype = sys.argv[1:]
upcycle_folder(Path(warm_up), Path(output + "-warm"), UpcycleOptions(dtype=dtype))  # imports what it needs
Path("/proc/self/clear_refs").write_text("5")  # the peak is the present from here on
before = memory("VmRSS")
upcycle_folder(Path(base), Path(output), UpcycleOptions(dtype=dtype, num_experts=2))
print(memory("VmHWM") - before)
"""


def write_large(path: Path) -> int:
    """A base of random weights, whose largest tensor is larger than what is allowed; returns its bytes."""
    config = tiny_text_config(Qwen2Config, hidden_size=1024, intermediate_size=10 * 1024, num_hidden_layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    specs = {
        name: TensorSpec(tuple(tensor.shape), torch.float32)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    path.mkdir()
    with TensorWriter(path, specs, max_shard_bytes=60 * MIB) as writer:
        for name, spec in specs.items():
            writer.write(name, 0, torch.rand(spec.shape))
    (path / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "qwen2"}))
    for name, text in companion_files(32).items():
        (path / name).write_text(text)
    return sum(spec.num_bytes for spec in specs.values())


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["keep", "bf16"])
def test_peak_memory_is_a_few_blocks(tmp_path: Path, dtype: str) -> None:
    torch.manual_seed(0)
    write_dense(tmp_path / "tiny", AutoModelForCausalLM.from_config(tiny_text_config(Qwen2Config)))
    size = write_large(tmp_path / "large")
    assert size > 2.5 * ALLOWED
    arguments = [str(tmp_path / name) for name in ("tiny", "large", "out")]
    command = [sys.executable, "-c", PROGRAM, *arguments, dtype]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < ALLOWED
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert written > (2 if dtype == "keep" else 1) * size
