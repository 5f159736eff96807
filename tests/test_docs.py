"""The documentation does what it says: the site builds without a warning, the notebook and the blocks of the ecosystem page run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import DEMO_MODEL
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
ECOSYSTEM = ROOT / "docs" / "ecosystem.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MEASURED = re.compile(r"\d+\.\d+|\.\.\.")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Commands are those of this environment; no library phones home."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "NO_MKDOCS_2_WARNING": "1", "HF_HUB_OFFLINE": "1"}


def test_the_site_builds_without_a_warning(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    page = (tmp_path / "site" / "api" / "mote_runtime.html").read_text()
    assert "An iterator over the answer's text" in page
    assert "temperature" in page
    assert (tmp_path / "site" / "repository" / "examples" / "digits_vqa" / "index.html").is_file()


@pytest.mark.long
def test_the_notebook_gives_what_it_shows(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, environment[name])
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shown = [_texts(cell) for cell in notebook.cells]
    assert "9+4+2=15" in "".join(map("".join, shown))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=300, coalesce_streams=True, resources=resources).execute()
    assert [_texts(cell) for cell in notebook.cells] == shown


def _texts(cell: nbformat.NotebookNode) -> list[str]:
    outputs = cell.get("outputs", [])
    return [output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"]


@pytest.mark.long
def test_the_blocks_of_the_ecosystem_page_run(demo_export: Path, environment: dict[str, str], tmp_path: Path) -> None:
    shutil.copyfile(DEMO_MODEL, tmp_path / "model.pt")
    shutil.copyfile(DEMO_MODEL.parent / "images" / "scene-5.png", tmp_path / "scene.png")
    shutil.copytree(demo_export, tmp_path / "demo")
    page = ECOSYSTEM.read_text()
    blocks = list(BLOCK.finditer(page))
    assert len(blocks) >= 6
    for block in blocks:
        language, code = block.groups()
        run = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        printed = " ".join(done.stdout.split())
        for line in _shown_output(page, block.end()):
            assert line in printed, f"{code}\nshows {line!r}, but gave\n{done.stdout}"


def _shown_output(page: str, end: int) -> list[str]:
    """The lines of the ```text block that directly follows, but those with a measured number, which differs each time."""
    following = re.match(r"\s*```text\n(.*?)^```$", page[end:], re.MULTILINE | re.DOTALL)
    lines = following[1].splitlines() if following else []
    return [" ".join(line.split()) for line in lines if line.strip() not in ("", "...") and not MEASURED.search(line)]
