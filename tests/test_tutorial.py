"""The tutorial's commands work as they stand there, and print what it shows."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import DEMO_MODEL

from mote_export.checkpoint import load_dense, load_model_pt

ROOT = Path(__file__).parent.parent
EXAMPLE = DEMO_MODEL.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
# A block of commands, and the block of output that directly follows.
BLOCK = re.compile(r"^```bash\n(.*?)^```$(?:\s*```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
TASK_ROW = re.compile(r"│ overall +│ +180 │ +([\d.]+)% │")


def test_the_page_names_what_there_is() -> None:
    """Scripts that exist, commands that are installed, and the recipe as it is."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    lines = [line.split() for block in BLOCK.finditer(PAGE) for line in block[1].splitlines()]
    assert [words[0] for words in lines if words[0] != "python"] == [
        "mote-upcycle", "mote-train", "mote-export", "mote-run", "mote-run", "mote-eval", "mote-eval",
    ]  # fmt: skip
    for words in lines:
        assert (ROOT / words[1]).is_file() if words[0] == "python" else words[0] in scripts
    recipe = re.search(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert recipe is not None
    assert recipe[1] == (EXAMPLE / "mote.yaml").read_text()


def test_the_base_is_the_demo_model_without_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import write_base

    monkeypatch.setattr(sys, "argv", ["write_base.py", "-o", str(tmp_path / "base")])
    assert write_base.main() == 0
    mote, base = load_model_pt(DEMO_MODEL), load_dense(tmp_path / "base")
    assert mote.files.items() <= base.files.items()
    state = mote.model.state_dict()
    for name, tensor in base.model.state_dict().items():
        assert tensor.equal(state[name.replace(".mlp.", ".mlp.shared_expert.") if "language_model" in name else name])
    for layer in mote.model.mote_layers():  # silence what was added, and the whole model is the base
        torch.nn.init.zeros_(layer.experts.down_proj)
    inputs = {"input_ids": torch.arange(20)[None]}
    with torch.no_grad():
        torch.testing.assert_close(mote.model(**inputs).logits, base.model(**inputs).logits, rtol=0, atol=0)
    assert write_base.main() == 1  # what is there stays


@pytest.mark.long
def test_the_commands_run_as_written(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    accuracies = []
    for block in BLOCK.finditer(PAGE):
        run = ["bash", "-euo", "pipefail", "-c", block[1]]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block[1]}\n{done.stdout}\n{done.stderr}"
        print(done.stdout)
        if block[1].startswith("mote-eval"):
            accuracies += [float(row[1]) for row in TASK_ROW.finditer(done.stdout)]
            continue
        printed = " ".join((done.stdout + done.stderr).split())
        for line in (block[2] or "").splitlines():
            assert " ".join(line.split()) in printed, (
                f"{block[1]}\nshows {line!r}, but gave\n{done.stdout}{done.stderr}"
            )
    # Sums run in another order on another processor, so trained weights and single answers may be others.
    assert len(accuracies) == 2
    assert min(accuracies) >= 88
