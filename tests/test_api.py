"""The Python API as a script or a notebook uses it: `mote_export.export` and `mote_runtime.load(...).generate`."""

import copy
import logging
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_checkpoint
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

import mote_export
import mote_runtime
from mote_export.checkpoint import Checkpoint, save_model_pt
from mote_export.exporter import choose_context
from mote_export.manifest import Source
from mote_export.quiet import quiet_libraries
from mote_runtime.errors import MoteError

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def processor(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> LlavaProcessor:
    folder = tmp_path_factory.mktemp("processor")
    (folder / "tokenizer.json").write_text(checkpoint.files["tokenizer.json"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>")
    return LlavaProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer, patch_size=8)


def test_a_model_in_memory_gives_the_export_of_its_file(
    checkpoint: Checkpoint, processor: LlavaProcessor, tmp_path: Path
) -> None:
    save_model_pt(tmp_path / "model.pt", checkpoint.model, checkpoint.files)
    before = copy.deepcopy(checkpoint.model.state_dict())
    [from_file] = mote_export.export(tmp_path / "model.pt", tmp_path / "file", target="onnx", verify=False)
    [from_memory] = mote_export.export(checkpoint.model, str(tmp_path / "memory"), target="onnx", processor=processor)
    assert from_memory.folder == tmp_path / "memory"
    assert from_file.verification is None
    assert from_memory.verification is not None
    for name in ("vision.onnx.data", "embedding.onnx.data", "model.onnx.data"):
        assert (from_file.folder / name).read_bytes() == (from_memory.folder / name).read_bytes(), name
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.model.state_dict().items())

    with mote_runtime.load(from_memory.folder) as model:
        generation = model.generate(PICTURE, "What is it?", max_new_tokens=8)
        pieces = list(generation)
        assert "".join(pieces) == generation.answer().text
        with mote_runtime.load(from_file.folder) as other:
            assert other.answer(PICTURE, "What is it?", max_new_tokens=8).token_ids == generation.answer().token_ids


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"target": "tflite"}, "target is 'tflite', expected 'onnx', 'executorch' or 'all'"),
        ({"opset": 12}, "opset is 12, expected 18 to 23"),
        ({"packing": "3bit"}, "packing is '3bit', expected '2bit', '1.6bit'"),
        ({"shared_expert": "int2"}, "shared_expert is 'int2', expected 'float32'"),
        ({"shared_group_size": 48}, "shared_group_size is 48, expected 32, 64, 128, 256"),
        ({"processor": object()}, "brings its own"),
        ({"target": ["onnx"]}, "target is .'onnx'., expected 'onnx', 'executorch' or 'all'"),
        ({"model": None}, "the model is a NoneType, expected a path of a checkpoint, a Mote"),
    ],
)
def test_a_wrong_argument_is_one_sentence(tmp_path: Path, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(MoteError, match=sentence):
        mote_export.export(**{"model": "model.pt", "output": tmp_path / "out", **arguments})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_model_needs_its_processor_and_to_be_ours(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(MoteError, match="needs its processor"):
        mote_export.export(checkpoint.model, tmp_path / "out")
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(checkpoint.model.config)
    with pytest.raises(MoteError, match="is a LlavaForConditionalGeneration, expected a MoteForConditionalGeneration"):
        mote_export.export(stock, tmp_path / "out")  # type: ignore[arg-type]


def test_a_processor_is_no_tokenizer(checkpoint: Checkpoint, processor: LlavaProcessor, tmp_path: Path) -> None:
    with pytest.raises(
        MoteError, match="the processor is a PreTrainedTokenizerFast, expected one of image processor and"
    ):
        mote_export.export(checkpoint.model, tmp_path / "out", processor=processor.tokenizer)  # type: ignore[arg-type]


def test_a_model_in_memory_is_checked_as_one_in_a_file(
    checkpoint: Checkpoint, processor: LlavaProcessor, tmp_path: Path
) -> None:
    with torch.device("meta"):
        empty = type(checkpoint.model)(checkpoint.model.config)
    diverged = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        diverged.lm_head.weight[0, 0] = torch.nan
    dense = copy.deepcopy(checkpoint.model)
    dense.config.moe = None
    for model, sentence in ((empty, "meta device"), (diverged, "contains NaN or infinity"), (dense, "no MoTE layer")):
        with pytest.raises(MoteError, match=sentence):
            mote_export.export(model, tmp_path / "out", target="onnx", processor=processor, verify=False)
    assert list(tmp_path.iterdir()) == []


def test_the_source_has_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path / "digits")
    assert [Source.of(Path(path)).name for path in (".", "../digits/", str(tmp_path / "digits"))] == ["digits"] * 3


def test_a_context_is_an_integer(checkpoint: Checkpoint) -> None:
    for wrong in ("64", 64.0):
        with pytest.raises(MoteError, match=r"the context length is '?64"):
            choose_context(checkpoint, wrong)  # type: ignore[arg-type]


def test_exports_in_threads_leave_logs_and_warnings_as_they_were() -> None:
    """The first one ends while the second one is at work, and the second one begins while the first one is."""
    before = logging.root.manager.disable, list(warnings.filters)
    second_began, first_ended = threading.Event(), threading.Event()

    def second() -> None:
        with quiet_libraries():
            second_began.set()
            assert first_ended.wait(60)

    with quiet_libraries():
        assert logging.root.manager.disable == logging.WARNING
        thread = threading.Thread(target=second)
        thread.start()
        assert second_began.wait(60)
    assert logging.root.manager.disable == logging.WARNING
    first_ended.set()
    thread.join()
    assert (logging.root.manager.disable, list(warnings.filters)) == before


def test_importing_is_cheap() -> None:
    code = "import sys, mote_export, mote_runtime; print(sorted({'torch', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
