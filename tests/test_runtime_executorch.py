"""The ExecuTorch backend over a small real program with the methods and metadata of an export."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_onnx_export as tiny

import mote_runtime
from mote_runtime.errors import BackendError

torch = pytest.importorskip("torch")
exir = pytest.importorskip("executorch.exir")

MAX_SEQ_LEN = 24  # less than the context, so that a prompt goes through in several calls
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


class Vision(torch.nn.Module):  # type: ignore[name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(3 * tiny.SIDE * tiny.SIDE // tiny.IMAGE_TOKENS, tiny.HIDDEN)

    def forward(self, pixel_values):  # type: ignore[no-untyped-def]
        return self.projection(pixel_values.reshape(1, tiny.IMAGE_TOKENS, -1))


class Decoder(torch.nn.Module):  # type: ignore[name-defined]
    """Logits from the sum of all positions so far, each weighted by its number: order and resets are visible."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(tiny.CONTEXT, tiny.HIDDEN))
        self.register_buffer("numbers", torch.arange(tiny.CONTEXT))
        self.head = torch.nn.Linear(tiny.HIDDEN, tiny.VOCAB, bias=False)

    def forward(self, inputs_embeds, positions):  # type: ignore[no-untyped-def]
        self.cache[positions] = inputs_embeds[0]
        last = positions[-1]
        weighted = (self.numbers + 1.0)[:, None] * self.cache
        # The program starts with any values in the cache, also with NaN.
        past = torch.where((self.numbers <= last)[:, None], weighted, 0.0)
        return self.head(past.sum(0, keepdim=True) / (last + 1))


def write_program(path: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    modules = {
        "vision_encoder": Vision().eval(),
        "token_embedding": torch.nn.Embedding(tiny.VOCAB, tiny.HIDDEN).eval(),
        "text_decoder": Decoder().eval(),
    }
    length = torch.export.Dim("length", min=1, max=MAX_SEQ_LEN)
    examples = {
        "vision_encoder": ((torch.zeros(1, 3, tiny.SIDE, tiny.SIDE),), None),
        "token_embedding": ((torch.zeros(1, 5, dtype=torch.int64),), ({1: length},)),
        "text_decoder": ((torch.zeros(1, 5, tiny.HIDDEN), torch.arange(5)), ({1: length}, {0: length})),
    }
    programs = {
        name: torch.export.export(module, examples[name][0], dynamic_shapes=examples[name][1], strict=False)
        for name, module in modules.items()
    }
    lengths = {"get_max_seq_len": MAX_SEQ_LEN, "get_max_context_len": tiny.CONTEXT}
    edge = exir.to_edge_transform_and_lower(programs, constant_methods=lengths)
    path.write_bytes(edge.to_executorch().buffer)
    return modules


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("export")
    modules = write_program(folder / "model.pte")
    tiny.tokenizer().save(str(folder / "tokenizer.json"))
    tiny.write_manifest(folder, target="executorch")
    return folder, modules


@pytest.fixture(scope="module")
def pipeline(exported: tuple[Path, dict[str, Any]]) -> Iterator[mote_runtime.Pipeline]:
    with mote_runtime.load(exported[0], threads=2) as loaded:
        yield loaded


def expected_logits(modules: dict[str, Any], ids: list[int], pictures: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        rows = modules["token_embedding"](torch.tensor(ids))
        images = torch.from_numpy(pictures)
        features = [modules["vision_encoder"](image[None])[0] for image in images]
        rows[torch.tensor(ids) == tiny.IMAGE_PAD] = torch.cat(features)
        weights = torch.arange(1.0, len(ids) + 1)[:, None]
        return np.asarray(modules["text_decoder"].head((weights * rows).sum(0) / len(ids)))


@pytest.mark.parametrize("length", [1, MAX_SEQ_LEN, MAX_SEQ_LEN + 1, 50])
def test_long_prompts_images_and_steps(
    exported: tuple[Path, dict[str, Any]], pipeline: mote_runtime.Pipeline, length: int
) -> None:
    random = np.random.default_rng(length)
    pictures = random.standard_normal((2, 3, tiny.SIDE, tiny.SIDE)).astype(np.float32)
    prompt = pipeline.tokenizer.encode_prompt("x" * length, 2)
    forced = random.integers(0, 256, 5).tolist()
    rows = pipeline.step_logits(prompt, forced, pictures)
    for count, row in enumerate(rows):
        assert np.abs(row - expected_logits(exported[1], prompt + forced[:count], pictures)).max() < 1e-4


def test_each_answer_starts_anew(pipeline: mote_runtime.Pipeline) -> None:
    answers = [pipeline.answer(PICTURE, "hi", max_new_tokens=6).token_ids for _ in range(2)]
    assert answers[0] == answers[1]


def test_a_damaged_program_is_a_sentence(exported: tuple[Path, object], tmp_path: Path) -> None:
    content = (exported[0] / "model.pte").read_bytes()
    for damaged in (b"", b"x" * 100, content[: len(content) // 2]):
        (tmp_path / "model.pte").write_bytes(damaged)
        tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
        tiny.write_manifest(tmp_path, target="executorch")
        with pytest.raises(BackendError, match=r"executorch cannot load .*model\.pte"):
            mote_runtime.load(tmp_path)


def test_a_program_without_a_method_names_it(exported: tuple[Path, object], tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    (tmp_path / "model.pte").write_bytes(exir.to_edge(program).to_executorch().buffer)
    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    tiny.write_manifest(tmp_path, target="executorch")
    with pytest.raises(BackendError, match=r"lacks the methods \['get_max_context_len', .*'vision_encoder'\]"):
        mote_runtime.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("hidden_size", 64, r"token_embedding returns the shape \[1, 24, 32\], but mote.json says \[1, None, 64\]"),
        ("vocab_size", 300, r"text_decoder returns the shape \[1, 262\], but mote.json says \[1, 300\]"),
        ("num_image_tokens", 5, r"vision_encoder returns the shape \[1, 4, 32\], but mote.json says \[1, 5, 32\]"),
        ("context_length", 97, "get_max_context_len is 96, but mote.json says context_length 97"),
    ],
)
def test_a_program_that_contradicts_the_manifest_is_refused(
    exported: tuple[Path, object], tmp_path: Path, field: str, value: int, expected: str
) -> None:
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    document = json.loads((folder / "mote.json").read_text())
    document["model"][field] = value
    (folder / "mote.json").write_text(json.dumps(document))
    with pytest.raises(BackendError, match=expected):
        mote_runtime.load(folder)


def test_stdout_of_mote_run_is_the_answer_alone(exported: tuple[Path, object]) -> None:
    command = [sys.executable, "-m", "mote_runtime.cli.run", str(exported[0]), "--prompt", "hi", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["runtime"] == "executorch"
