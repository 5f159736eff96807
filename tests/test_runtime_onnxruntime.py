"""The pipeline over real ONNX Runtime sessions, with the plugin in the decoder."""

import gc
import itertools
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny_onnx_export as tiny

import mote_runtime
from mote_runtime import MoteError, Pipeline
from mote_runtime.backends.base import chunks
from mote_runtime.errors import BackendError, ExportFolderError, ImageError
from mote_runtime.preprocess import preprocess_image

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
SEEDS = range(20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_export(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Iterator[Pipeline]:
    with mote_runtime.load(folder, threads=1) as loaded:
        yield loaded


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change_manifest(folder: Path, section: str, **changes: object) -> None:
    path = folder / "mote.json"
    document = json.loads(path.read_text())
    document[section] |= changes
    path.write_text(json.dumps(document))


def growing_cache_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """Logits of the last of `ids`, one token at a time with past and present as separate, growing arrays."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(mote_runtime.get_library_path("onnxruntime")))
    decoder = ort.InferenceSession(str(folder / "model.onnx"), options)
    embedding = ort.InferenceSession(str(folder / "embedding.onnx"))
    features = np.zeros((0, tiny.HIDDEN), np.float32)
    names = [value.name for value in decoder.get_inputs()[2:]]
    cache = {name: np.zeros((1, tiny.KV_HEADS, 0, tiny.HEAD_DIM), np.float32) for name in names}
    logits = None
    for position, token_id in enumerate(ids):
        embeds = embedding.run(None, {"input_ids": np.array([[token_id]]), "image_features": features})[0]
        inputs = {"inputs_embeds": embeds, "attention_mask": np.ones((1, position + 1), np.int64), **cache}
        logits, *present = decoder.run(None, inputs)
        cache = dict(zip(names, present, strict=True))
    assert logits is not None
    return logits[0, 0]


def test_shared_buffers_give_what_growing_ones_give(folder: Path, pipeline: Pipeline) -> None:
    prompt, forced = pipeline.tokenizer.encode_prompt("hi"), list(range(40, 60))
    rows = pipeline.step_logits(prompt, forced)
    assert rows.shape == (len(forced) + 1, tiny.VOCAB)
    for count in (0, 1, len(forced)):
        expected = growing_cache_logits(folder, prompt + forced[:count])
        assert np.abs(rows[count] - expected).max() < 1e-5


def test_a_sequence_leaves_nothing_behind_for_the_next(pipeline: Pipeline) -> None:
    prompt = pipeline.tokenizer.encode_prompt("hi")
    expected = pipeline.step_logits(prompt)
    pipeline.step_logits(list(range(tiny.CONTEXT)))
    assert np.array_equal(pipeline.step_logits(prompt), expected)


def test_an_image_changes_the_answer_and_its_place_matters(pipeline: Pipeline) -> None:
    other = 255 - PICTURE
    prompt = pipeline.tokenizer.encode_prompt("hi", 2)
    spec = pipeline.manifest.image
    assert spec is not None
    pictures = [preprocess_image(picture, spec) for picture in (PICTURE, other)]
    there, back = (pipeline.step_logits(prompt, (), np.stack(order)) for order in (pictures, pictures[::-1]))
    assert not np.array_equal(there, back)


def test_a_cache_in_int8_answers_nearly_as_one_in_float32(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "INT8_CACHE", True)
    prompt, forced = pipeline.tokenizer.encode_prompt("x" * 30), list(range(40, 60))
    expected = pipeline.step_logits(prompt, forced)
    with mote_runtime.load(tiny.write_export(tmp_path), threads=1) as quantized:
        rows = quantized.step_logits(prompt, forced)
        difference = np.sqrt(((rows - expected) ** 2).mean()) / expected.std()
        assert 0 < difference < 0.05
        assert np.array_equal(quantized.step_logits(prompt, forced), rows)


def test_a_cache_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "INT8_CACHE", True)
    folder = tiny.write_export(tmp_path)
    monkeypatch.setattr(tiny, "INT8_CACHE", False)
    tiny.write_manifest(folder)
    with pytest.raises(BackendError, match=r"^model\.onnx keeps keys and values in int8, but mote\.json says float32"):
        mote_runtime.load(folder)


@pytest.mark.parametrize(
    ("scales", "attributes", "message"),
    [
        (np.full(3, 0.1, np.float32), {}, "k_scale shape mismatch"),
        (np.full(1, 0.1, np.float64), {}, "double"),
        (np.full((1, tiny.KV_HEADS, 1, tiny.HEAD_DIM), 0.1, np.float32), {}, "k_scale shape mismatch"),
        (np.full(1, 0.1, np.float32), {"k_quant_type": "NONE"}, "when quantization is disabled"),
        (np.full(1, 0.1, np.float32), {"kv_cache_bit_width": 4}, "expected 8"),
    ],
)
def test_scales_that_fit_no_cache_are_an_error_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scales: np.ndarray[Any, Any],
    attributes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(tiny, "INT8_CACHE", True)
    folder = tiny.write_export(tmp_path)
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            changed = [onnx.helper.make_attribute(*item) for item in attributes.items()]
            kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
            del node.attribute[:]
            node.attribute.extend([*kept, *changed])
            for initializer in model.graph.initializer:
                if initializer.name in node.input[-2:]:
                    initializer.CopyFrom(onnx.numpy_helper.from_array(scales, initializer.name))
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    tiny.write_manifest(folder)
    with pytest.raises(BackendError, match=message) as raised, mote_runtime.load(folder) as pipeline:
        pipeline.step_logits(pipeline.tokenizer.encode_prompt("hello"))
    assert "\n" not in str(raised.value)


def test_a_cache_of_another_type_is_refused(copy: Path) -> None:
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    for value in itertools.chain(model.graph.input, model.graph.output):
        if "." in value.name:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, copy / "model.onnx")
    tiny.write_manifest(copy)
    with pytest.raises(BackendError, match=r"model\.onnx"):
        mote_runtime.load(copy)


def test_chunks_are_few_and_even() -> None:
    assert [(cut.start, cut.stop) for cut in chunks(11, 4)] == [(0, 3), (3, 7), (7, 11)]
    assert [(cut.start, cut.stop) for cut in chunks(8, 8)] == [(0, 8)]
    assert list(chunks(0, 8)) == []
    for length in range(1, 50):
        lengths = [cut.stop - cut.start for cut in chunks(length, 7)]
        assert sum(lengths) == length
        assert len(lengths) == -(-length // 7)
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_a_prompt_in_chunks_is_the_whole_prompt(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    spec = pipeline.manifest.image
    assert spec is not None
    pictures = np.stack([preprocess_image(picture, spec) for picture in (PICTURE, 255 - PICTURE)])
    prompt = pipeline.tokenizer.encode_prompt("x" * 40, 2)
    assert len(prompt) > 64
    whole = pipeline.step_logits(prompt, [40, 41], pictures)
    monkeypatch.setattr(pipeline._backend, "_chunk", chunk)
    assert np.abs(pipeline.step_logits(prompt, [40, 41], pictures) - whole).max() < 1e-5


def test_streamed_pieces_are_the_answer(pipeline: Pipeline) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.5, "seed": 4}
    generation = pipeline.generate(PICTURE, "hi", **settings)
    first = next(generation)
    pieces = [first, *generation]
    answer = generation.answer()
    assert "".join(pieces) == answer.text == pipeline.answer([PICTURE], "hi", **settings).text
    assert answer.text == pipeline.tokenizer.decode(answer.token_ids)


def test_answers_end_where_they_must(pipeline: Pipeline) -> None:
    answers = [pipeline.answer(None, "hi", max_new_tokens=60, temperature=3.0, seed=seed) for seed in SEEDS]
    answers.append(pipeline.answer(None, "x" * 60, max_new_tokens=60))
    reasons = {answer.finish_reason for answer in answers}
    assert reasons == {"stop", "length", "context"}
    for answer in answers:
        generated, prompt = answer.timings["generated_tokens"], answer.timings["prompt_tokens"]
        assert generated == len(answer.token_ids)
        assert tiny.IM_END not in answer.token_ids
        assert tiny.IMAGE_PAD not in answer.token_ids
        assert generated == 60 if answer.finish_reason == "length" else generated < 60
        # The last token needs no place in the context, so there is one more than fits.
        assert (prompt + generated == tiny.CONTEXT + 1) == (answer.finish_reason == "context")


def test_timings_are_in_order_under_the_names_of_executorch(pipeline: Pipeline) -> None:
    timings = pipeline.answer(PICTURE, "hi", max_new_tokens=5).timings
    marks = (
        "model_load_start model_load_end inference_start token_encode_end image_encode_end prompt_eval_end first_token"
    )
    values = [timings[f"{name}_ms"] for name in (*marks.split(), "inference_end")]
    assert values == sorted(values)
    assert timings["decode_steps"] == 4
    seconds = (timings["inference_end_ms"] - timings["prompt_eval_end_ms"]) / 1000
    assert timings["decode_token_per_sec"] == pytest.approx(4 / seconds, rel=0.1)
    assert timings["prefill_token_per_sec"] > 0


def test_the_greedy_ids_are_the_greatest_logits(pipeline: Pipeline) -> None:
    prompt = pipeline.tokenizer.encode_prompt("hi")
    ids = pipeline.generate_ids(prompt, max_new_tokens=8)
    assert pipeline.step_logits(prompt, ids[:-1]).argmax(axis=1).tolist() == ids


def test_the_number_of_threads_changes_no_bit_of_the_experts(folder: Path, pipeline: Pipeline) -> None:
    prompt = pipeline.tokenizer.encode_prompt("hi")
    with mote_runtime.load(folder, threads=2) as two:
        assert np.abs(two.step_logits(prompt) - pipeline.step_logits(prompt)).max() < 1e-5


def test_prompts_that_do_not_fit(pipeline: Pipeline) -> None:
    with pytest.raises(MoteError, match=r"prompt is 219 tokens long, but the model's context holds 96"):
        pipeline.generate(None, "x" * 200)
    with pytest.raises(MoteError, match=r"225 tokens long \(4 of them for images\)"):
        pipeline.generate(PICTURE, "x" * 200)
    with pytest.raises(MoteError, match="97 tokens do not fit the context of 96"):
        pipeline.step_logits([1] * 90, [1] * 7)
    with pytest.raises(MoteError, match="the prompt has no tokens"):
        pipeline.generate_ids([])
    with pytest.raises(MoteError, match="token id 262 is not in the vocabulary of 262"):
        pipeline.generate_ids([tiny.VOCAB])
    with pytest.raises(MoteError, match="has 1 image tokens; expected 0 for 0 images"):
        pipeline.generate_ids([tiny.IMAGE_PAD])
    with pytest.raises(MoteError, match="an image token, which belongs into the prompt only"):
        pipeline.step_logits([1], [tiny.IMAGE_PAD])
    with pytest.raises(MoteError, match="max_new_tokens is 0"):
        pipeline.generate(None, "hi", max_new_tokens=0)
    with pytest.raises(ImageError, match=r"shape \[1, 3, 4, 4\]; expected \[n, 3, 8, 8\]"):
        pipeline.generate_ids([tiny.IMAGE_PAD] * 4, np.zeros((1, 3, 4, 4), np.float32))


def test_text_only_model(tmp_path: Path) -> None:
    with mote_runtime.load(tiny.write_export(tmp_path, text_only=True)) as pipeline:
        assert pipeline.answer(None, "hi", max_new_tokens=3).finish_reason
        with pytest.raises(ImageError, match="'tiny' is text only; leave the image out"):
            pipeline.generate(PICTURE, "hi")


def test_a_generation_ends_when_another_begins(pipeline: Pipeline) -> None:
    first = pipeline.generate(None, "hi", max_new_tokens=9)
    next(first)
    pipeline.generate(None, "ho")
    with pytest.raises(MoteError, match="ended by a newer one"):
        first.answer()


def test_closing_twice_and_use_after_closing(folder: Path) -> None:
    pipeline = mote_runtime.load(folder)
    generation = pipeline.generate(None, "hi")
    pipeline.close()
    pipeline.close()
    for use in (lambda: next(generation), lambda: pipeline.generate(None, "hi"), lambda: pipeline.step_logits([1])):
        with pytest.raises(MoteError, match="pipeline is closed"):
            use()


def test_memory_lent_to_the_runtime_lives_until_closing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lend, lent = ort.OrtValue.ortvalue_from_numpy, []

    def lend_a_copy(array: np.ndarray) -> ort.OrtValue:  # so that nothing in this runtime keeps the array itself
        lent.append(weakref.ref(array))
        return lend(array.copy())

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", staticmethod(lend_a_copy))
    pipeline = mote_runtime.load(folder)
    gc.collect()
    assert len(lent) == 2 * tiny.LAYERS + 1
    assert all(array() is not None for array in lent)
    pipeline.close()
    gc.collect()
    assert all(array() is None for array in lent)


def test_finds_the_folder_of_a_runtime(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "onnx")
    for runtime in (None, "onnxruntime"):
        mote_runtime.load(tmp_path, runtime).close()
    with pytest.raises(ExportFolderError, match="holds an export for onnxruntime, none for executorch"):
        mote_runtime.load(tmp_path, "executorch")
    with pytest.raises(ExportFolderError, match="was exported for onnxruntime, not for executorch"):
        mote_runtime.load(folder, "executorch")
    with pytest.raises(MoteError, match="'tensorrt' is not known; expected onnxruntime or executorch"):
        mote_runtime.load(folder, "tensorrt")
    with pytest.raises(MoteError, match="threads is 0"):
        mote_runtime.load(folder, threads=0)


def test_a_graph_that_contradicts_the_manifest_is_refused(copy: Path) -> None:
    change_manifest(copy, "model", head_dim=32)
    with pytest.raises(
        BackendError, match=r"past_key_values\.0\.key has shape .* but mote.json says \[1, 2, None, 32\]"
    ):
        mote_runtime.load(copy)
    change_manifest(copy, "model", head_dim=16, num_hidden_layers=3)
    with pytest.raises(BackendError, match=r"missing \['past_key_values.2.key', 'past_key_values.2.value'\]"):
        mote_runtime.load(copy)


def test_no_memory_for_the_cache_is_a_sentence(copy: Path) -> None:
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    for value in itertools.chain(model.graph.input, model.graph.output):
        if "." in value.name:
            value.type.tensor_type.shape.dim[3].dim_param = "head_dim"
    onnx.save(model, copy / "model.onnx")
    tiny.write_manifest(copy)
    change_manifest(copy, "model", head_dim=1 << 20, context_length=1 << 24)
    with pytest.raises(BackendError, match="no memory for the KV cache: 4 buffers of"):
        mote_runtime.load(copy)


def test_an_operator_without_its_plugin_names_the_plugin(copy: Path) -> None:
    document = json.loads((copy / "mote.json").read_text())
    document["plugin"] = None
    (copy / "mote.json").write_text(json.dumps(document))
    with pytest.raises(BackendError, match=r"TernaryMoE.*mote_runtime\.get_library_path\(\"onnxruntime\"\)"):
        mote_runtime.load(copy)


def test_a_library_in_the_model_folder_is_not_loaded(copy: Path) -> None:
    (copy / "libmote_ort.so").write_bytes(b"\x7fELF what would crash if it were loaded")
    tiny.write_manifest(copy)
    mote_runtime.load(copy).close()


@pytest.mark.parametrize("name", ["model.onnx", "embedding.onnx", "vision.onnx", "model.onnx.data"])
def test_damaged_graphs_end_in_a_sentence(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    tiny.write_manifest(copy)  # as if whoever damaged it had also written the manifest
    with pytest.raises(BackendError, match="onnxruntime cannot load") as caught:
        mote_runtime.load(copy)
    assert "\n" not in str(caught.value)


def test_external_data_outside_of_the_folder_is_not_read(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "model.onnx.data", tmp_path / "model.onnx.data")
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            entry.value = "../model.onnx.data" if entry.key == "location" else entry.value
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    tiny.write_manifest(copy)
    with pytest.raises(BackendError, match=r"model\.onnx"):
        mote_runtime.load(copy)


_BLOCKED_RUN = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
from mote_runtime.cli.run import main
sys.exit(main({arguments!r}))
"""


def run_blocked(blocked: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = _BLOCKED_RUN.format(blocked=blocked, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_needs_no_torch(folder: Path) -> None:
    blocked = {"torch", "executorch", "transformers", "onnx", "onnxscript", "mote_export", "torchao"}
    done = run_blocked(blocked, str(folder), "--prompt", "hi", "--max-new-tokens", "3")
    assert (done.returncode, done.stderr) == (0, "")


def test_missing_onnxruntime_is_a_sentence(folder: Path) -> None:
    done = run_blocked({"onnxruntime"}, str(folder), "--prompt", "hi")
    assert done.returncode == 1
    assert done.stderr.startswith("mote-run: onnxruntime cannot be imported")
    assert done.stderr.count("\n") == 1


def test_missing_executorch_is_a_sentence(tmp_path: Path) -> None:
    for name in ("model.pte", "tokenizer.json"):
        (tmp_path / name).touch()
    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    tiny.write_manifest(tmp_path, target="executorch")
    done = run_blocked({"executorch"}, str(tmp_path), "--prompt", "hi")
    assert done.returncode == 1
    assert "pip install 'mote[executorch]'" in done.stderr
    assert done.stderr.count("\n") == 1
