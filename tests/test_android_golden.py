"""The files that the Kotlin engine is compared with are what mote_runtime gives today."""

import json
from pathlib import Path

import android_golden
import pytest

from mote_runtime import load
from mote_runtime.manifest import Manifest


@pytest.fixture(scope="module")
def made(demo_export: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with load(demo_export, "onnxruntime") as pipeline:
        return android_golden.golden_files(pipeline, tmp_path_factory.mktemp("golden"))


def test_the_golden_files_are_up_to_date(made: dict[str, bytes]) -> None:
    """After a change that is meant: python tests/android_golden.py EXPORT."""
    kept = {path.name: path.read_bytes() for path in android_golden.GOLDEN.iterdir() if path != android_golden.BASE}
    assert kept.keys() == made.keys()
    assert [name for name in kept if kept[name] != made[name]] == []


def test_executorch_gives_the_same_answers(demo_export: Path, made: dict[str, bytes]) -> None:
    with load(demo_export, "executorch") as pipeline:
        assert android_golden.answers_golden(pipeline) == json.loads(made["answers.json"])


def test_every_field_of_the_golden_manifest_is_checked(made: dict[str, bytes]) -> None:
    """What is changed was whole before, and of every field something is refused."""
    Manifest.parse(Path(), android_golden.MANIFEST)
    golden = json.loads(made["manifest.json"])
    assert [result["path"] for result in golden["results"] if "0" not in result["taken"]] == []
