"""The KV cache in int8: scales from a calibration, rounding as in ONNX Runtime, and whole exports with it."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny import tiny_checkpoint, tiny_text_checkpoint, tiny_text_config
from torch import Tensor
from transformers import Qwen2Config, StableLmConfig

from mote_export import kv_cache
from mote_export.budget import estimate_bytes
from mote_export.checkpoint import Checkpoint, open_path
from mote_export.checkpoint.pt import save_model_pt
from mote_export.cli import export as cli
from mote_export.cli import report
from mote_export.defaults import DEFAULT_RTOL
from mote_export.exporter import export, rewrite
from mote_export.kv_cache import CacheScales, calibrate, random_prompt, round_to_codes, scales_of, set_scales
from mote_export.passes import PackOptions
from mote_export.passes.cached_sdpa import rotate
from mote_export.passes.group_query_attention import QUANTIZED
from mote_export.scratch import Scratch
from mote_export.verify import Sample, VerificationError, reference_logits, relative_difference, verify_folder
from mote_runtime import Pipeline, load
from mote_runtime.errors import BackendError, ExportFolderError, MoteError
from mote_runtime.manifest import Manifest, sha256

INT8 = PackOptions(kv_cache="int8")
QUERY_HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 6, 2, 16, 40


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """Untied and with scores of some size, so that what attention sees decides the answers."""
    found = tiny_checkpoint()
    with torch.no_grad():
        for layer in found.model.get_decoder().layers:
            layer.self_attn.q_proj.weight.mul_(8.0)
            layer.self_attn.k_proj.weight.mul_(8.0)
    return found


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (50, 40, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, picture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command line, from a file whose weights are read one module at a time."""
    folder = tmp_path_factory.mktemp("int8")
    save_model_pt(folder / "tiny.pt", checkpoint.model, dict(checkpoint.files))
    options = [
        "--target",
        "onnx",
        "--kv-cache",
        "int8",
        "--sample",
        str(picture),
        "What is it?",
        "--context-length",
        "100",
    ]
    assert cli.main([str(folder / "tiny.pt"), "-o", str(folder / "out"), *options]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """torch's model with the scales that lie in the exported graph."""
    path = tmp_path_factory.mktemp("again") / "tiny.pt"
    save_model_pt(path, checkpoint.model, dict(checkpoint.files))
    found = open_path(path, None).skeleton()
    with Scratch(path.parent) as scratch:
        rewrite(found.model, INT8, scratch)
    set_scales(found.model, exported_scales(exported))
    return found


def exported_scales(folder: Path) -> list[CacheScales]:
    model = onnx.load(folder / "model.onnx")
    weights = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    return [CacheScales(*(torch.tensor(weights[name][0, :, 0]) for name in node.input[-2:])) for node in nodes]


def attention_session(
    scales: CacheScales, scale_shape: Sequence[int] = (1, KV_HEADS, 1, HEAD_DIM)
) -> ort.InferenceSession:
    """One node as a pass writes it, with its rotary tables."""
    constants = {"k_scale": scales.key.reshape(*scale_shape), "v_scale": scales.value.reshape(*scale_shape)}
    constants |= dict(zip(("cos", "sin"), rotary(), strict=True))
    cache = (TensorProto.INT8, [1, KV_HEADS, "past", HEAD_DIM])
    inputs: dict[str, Any] = {name: (TensorProto.FLOAT, [1, "length", None]) for name in ("query", "key", "value")}
    inputs |= {"past_key": cache, "past_value": cache}
    inputs |= {"seqlens_k": (TensorProto.INT32, [1]), "total_length": (TensorProto.INT32, [1])}
    node = helper.make_node(
        "GroupQueryAttention",
        [*inputs, "cos", "sin", "", "", "", "k_scale", "v_scale"],
        ["output", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=QUERY_HEADS,
        kv_num_heads=KV_HEADS,
        do_rotary=1,
        **QUANTIZED,
    )
    outputs = {"output": TensorProto.FLOAT, "present_key": TensorProto.INT8, "present_value": TensorProto.INT8}
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, *item) for name, item in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def rotary() -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(CONTEXT), 100.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    return angles.cos(), angles.sin()


def attend(heads: Sequence[Tensor], scales: CacheScales) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention in float64 over rounded keys and values, and these; heads [length, heads, head_dim] each."""
    cos, sin = (table[: len(heads[0])] for table in rotary())
    query, key = (rotate(x[None], cos, sin)[0].transpose(0, 1) for x in heads[:2])
    key, value = (
        round_to_codes(key[None], scales.key)[0],
        round_to_codes(heads[2].transpose(0, 1)[None], scales.value)[0],
    )
    groups = QUERY_HEADS // KV_HEADS
    repeated = (x.double().repeat_interleave(groups, dim=0) for x in (key, value))
    output = torch.nn.functional.scaled_dot_product_attention(query.double(), *repeated, is_causal=True)
    return output.transpose(0, 1).flatten(1), key, value


@pytest.mark.parametrize("cuts", [[CONTEXT], [1] * CONTEXT, [1, 20, 1, 18], [13, 27]])
def test_codes_and_attention_are_those_of_onnxruntime(cuts: list[int]) -> None:
    """The same for all ways to cut a prompt; some keys and values are beyond their scales."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(CONTEXT, count, HEAD_DIM) for count in (QUERY_HEADS, KV_HEADS, KV_HEADS)]
    heads = [torch.randn(shape, generator=generator) for shape in shapes]
    scales = CacheScales(*(torch.rand(2, KV_HEADS, HEAD_DIM, generator=generator) * 2 + 0.5) / 127)
    expected, key, value = attend(heads, scales)
    assert (heads[2].transpose(0, 1) - value).abs().max() > 0.5, "something is cut"

    session = attention_session(scales)
    past = [np.zeros((1, KV_HEADS, 0, HEAD_DIM), np.int8)] * 2
    rows: list[NDArray[np.float32]] = []
    done = 0
    for length in cuts:
        pieces = [x[done : done + length].flatten(1)[None].numpy() for x in heads]
        done += length
        feeds = dict(zip(("query", "key", "value", "past_key", "past_value"), (*pieces, *past), strict=True))
        lengths = {"seqlens_k": np.array([done - 1], np.int32), "total_length": np.array([done], np.int32)}
        output, *past = session.run(None, feeds | lengths)
        rows.append(output[0])
    for codes, scale, rounded in zip(past, scales, (key, value), strict=True):
        assert torch.equal(torch.from_numpy(codes)[0] * scale[:, None], rounded)
    assert np.abs(np.concatenate(rows) - expected.numpy()).max() < 2e-6


def test_scales_for_a_head_are_not_enough() -> None:
    """A scale for each channel it is, or one for all: the kernel broadcasts nothing."""
    scales = CacheScales(*torch.full((2, KV_HEADS, 1), 0.1))
    session = attention_session(scales, (1, KV_HEADS, 1, 1))
    feeds: dict[str, Any] = {"query": np.zeros((1, 1, QUERY_HEADS * HEAD_DIM), np.float32)}
    feeds |= dict.fromkeys(("key", "value"), np.zeros((1, 1, KV_HEADS * HEAD_DIM), np.float32))
    feeds |= dict.fromkeys(("past_key", "past_value"), np.zeros((1, KV_HEADS, 0, HEAD_DIM), np.int8))
    feeds |= {"seqlens_k": np.zeros(1, np.int32), "total_length": np.ones(1, np.int32)}
    with pytest.raises(Exception, match="k_scale shape mismatch: expected 32 elements, got 2"):
        session.run(None, feeds)


def layer_keys(model: Any, ids: Sequence[int]) -> Tensor:
    """Of the first layer, after rotary embedding: [kv_heads, length, head_dim]."""
    cache = model(input_ids=torch.tensor([list(ids)]), use_cache=True).past_key_values
    return cache.layers[0].keys[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_scales_hold_at_every_position(part: float) -> None:
    """Keys of the first layer depend on token and position alone, and those of few positions bound those of all."""
    factor = {"partial_rotary_factor": part} if part < 1 else {}
    config = tiny_text_config(StableLmConfig if factor else Qwen2Config, rope_theta=1e4, **factor)
    model = tiny_text_checkpoint(config).model
    ids = [7, 80, 200, 31]
    found = calibrate(model, [(ids, None)], 0, 100)
    assert (found.samples, found.own_samples, found.positions) == (1, 0, 4)
    greatest = scales_of(model.get_decoder().layers[0].self_attn).key * 127 / kv_cache.MARGIN  # type: ignore[union-attr]
    near, far = (layer_keys(model, [*[7] * before, *ids])[:, before:].abs().amax(dim=1) for before in (0, 90))
    assert (far > 1.2 * near).any(), "far positions have greater keys than those of the calibration"
    assert (far <= 1.0001 * greatest).all()
    assert (near >= 0.3 * greatest).any()


def test_a_calibration_takes_the_greatest_of_all_samples(checkpoint: Checkpoint) -> None:
    model, prompts = checkpoint.model, [([5, 6, 7], None), ([100, 3], None), ([1] * 20, None)]

    def scales(chosen: Sequence[Any]) -> list[CacheScales]:
        calibrate(model, chosen, 0, 10)
        return [scales_of(layer.self_attn) for layer in model.get_decoder().layers]  # type: ignore[misc]

    try:
        together, *apart = scales(prompts), scales(prompts[:1]), scales(prompts[1:2])
        for both, first, second in zip(together, *apart, strict=True):
            for found, pair in zip(both, zip(first, second, strict=True), strict=True):
                assert torch.equal(found, torch.maximum(*pair))
        found = calibrate(model, prompts, 2, 10)
        assert (found.samples, found.own_samples, found.positions) == (2, 1, 5), "the last one does not fit"
        with pytest.raises(MoteError, match="no sample fits the context of 1 positions"):
            calibrate(model, prompts, 0, 1)
    finally:
        clear_scales(model)


def clear_scales(model: Any) -> None:
    for layer in model.get_decoder().layers:
        for name in [name for name in layer.self_attn._buffers if "cache" in name]:
            delattr(layer.self_attn, name)


def test_a_channel_without_values_has_a_scale_and_infinity_none() -> None:
    model = tiny_text_checkpoint().model
    attention = model.get_decoder().layers[0].self_attn
    with torch.no_grad():
        attention.v_proj.weight[:16] = 0.0
        attention.v_proj.bias[:16] = 0.0
        model.get_decoder().layers[1].self_attn.v_proj.weight.zero_()
        model.get_decoder().layers[1].self_attn.v_proj.bias.zero_()
    calibrate(model, [([1, 2, 3], None)], 0, 10)
    scale = scales_of(attention).value  # type: ignore[union-attr]
    assert torch.allclose(scale[0], 0.01 * scale.max().expand(16))
    assert torch.equal(scales_of(model.get_decoder().layers[1].self_attn).value, torch.ones(2, 16))  # type: ignore[union-attr]
    with torch.no_grad():
        attention.k_proj.bias[0] = torch.inf
    with pytest.raises(MoteError, match=r"^keys or values of layer 0 are not finite"):
        calibrate(model, [([1, 2, 3], None)], 0, 10)


def test_an_export_says_what_it_holds(exported: Path) -> None:
    document = json.loads((exported / "mote.json").read_text())
    cache = document["quantization"]["kv_cache"]
    assert cache == {
        "format": "int8",
        "bytes_per_position": 2 * 2 * 2 * 16,
        "samples": 5,
        "own_samples": 1,
        "positions": cache["positions"],
        "margin": kv_cache.MARGIN,
    }
    assert cache["positions"] > 100 + 3 * 16, "random tokens fill the context, and three samples have pictures"
    assert Manifest.read(exported).kv_cache == "int8"
    model = onnx.load(exported / "model.onnx", load_external_data=False)
    values = [
        value for value in (*model.graph.input, *model.graph.output) if "key" in value.name or "value" in value.name
    ]
    assert len(values) == 8
    assert {value.type.tensor_type.elem_type for value in values} == {TensorProto.INT8}
    nodes = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    shapes = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    assert [[shapes[name] for name in node.input[-2:]] for node in nodes] == [[[1, 2, 1, 16]] * 2] * 2


def step_logits(pipeline: Pipeline, ids: Sequence[int], answer: Sequence[int]) -> NDArray[np.float32]:
    return np.array(list(pipeline.step_logits(list(ids), list(answer))))


def test_torch_rounds_keys_and_values_as_the_runtime_does(
    exported: Path, reference: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a text and of a single token; without rounding torch is much further away."""
    with load(exported, threads=1) as pipeline:
        prompt = pipeline.tokenizer.encode_prompt("What is it?")
        for ids, answer in ((prompt, [40, 70, 90]), ([50], [])):
            found = step_logits(pipeline, ids, answer)
            rounded = reference_logits(reference.model, ids, answer, None)
            with monkeypatch.context() as context:
                context.setattr("mote_export.verify.rounded_cache", lambda model: None)
                exact = reference_logits(reference.model, ids, answer, None)
            assert max(map(relative_difference, found, rounded)) < DEFAULT_RTOL
            assert max(map(relative_difference, found, exact)) > 1.5 * DEFAULT_RTOL
        whole = step_logits(pipeline, prompt, [])
        monkeypatch.setattr(pipeline._backend, "_chunk", 7)
        assert relative_difference(step_logits(pipeline, prompt, [])[0], whole[0]) < DEFAULT_RTOL


def test_random_tokens_are_of_the_vocabulary_and_no_pictures(exported: Path) -> None:
    model = replace(Manifest.read(exported).model, vocab_size=9, image_token_id=3)
    assert set(random_prompt(model)) == set(range(9)) - {3}
    assert len(random_prompt(model)) == 100
    assert random_prompt(model) == random_prompt(model)
    assert len(random_prompt(replace(model, context_length=4000, image_token_id=None))) == 256


def test_the_greatest_values_of_a_calibration_lie_on_codes(checkpoint: Checkpoint) -> None:
    """Between two of them torch and a runtime round to either side, which a margin of 2 did to a value of every channel."""
    ids = [5, 60, 7, 90]
    try:
        calibrate(checkpoint.model, [(ids, None)], 0, 100)
        scales = [scales_of(layer.self_attn) for layer in checkpoint.model.get_decoder().layers]
        assert isinstance(scales[0], CacheScales)
        cache = checkpoint.model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
        codes = cache.layers[0].values[0].abs().amax(dim=1) / scales[0].value
        assert torch.allclose(codes, codes.round(), atol=1e-3)
    finally:
        clear_scales(checkpoint.model)


def rewritten(folder: Path, copy: Path, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Path:
    """A copy whose graph has other scales, and whose manifest agrees with it."""
    shutil.copytree(folder, copy)
    model = onnx.load(copy / "model.onnx")
    names = {name for node in model.graph.node if node.op_type == "GroupQueryAttention" for name in node.input[-2:]}
    for weight in model.graph.initializer:
        if weight.name in names:
            weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)), weight.name))
    (copy / "model.onnx.data").unlink()
    onnx.save(model, copy / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    document = json.loads((copy / "mote.json").read_text())
    for name in ("model.onnx", "model.onnx.data"):
        path = copy / name
        document["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (copy / "mote.json").write_text(json.dumps(document))
    return copy


def test_wrong_scales_in_a_graph_are_found(exported: Path, reference: Checkpoint, tmp_path: Path) -> None:
    samples = [Sample("What is it?")]
    same = rewritten(exported, tmp_path / "same", lambda scale: scale)
    assert verify_folder(same, reference.model, samples, DEFAULT_RTOL).max_relative_difference < DEFAULT_RTOL
    changes: list[Callable[[NDArray[np.float32]], NDArray[np.float32]]] = [
        lambda scale: scale / 8,  # most is cut
        lambda scale: scale * 16,  # little is left
    ]
    for number, change in enumerate(changes):
        copy = rewritten(exported, tmp_path / str(number), change)
        with pytest.raises(VerificationError):
            verify_folder(copy, reference.model, samples, DEFAULT_RTOL)
    copy = rewritten(exported, tmp_path / "nan", lambda scale: np.full_like(scale, np.nan))
    with pytest.raises(BackendError, match="greatest logit is nan"):
        verify_folder(copy, reference.model, samples, DEFAULT_RTOL)


@pytest.mark.slow
def test_partial_rotary_embedding_and_no_pictures(tmp_path: Path) -> None:
    config = tiny_text_config(StableLmConfig, partial_rotary_factor=0.5, head_dim=32, hidden_size=128)
    (result,) = export(tiny_text_checkpoint(config), tmp_path / "out", ["onnx"], pack=INT8)
    assert result.kv_cache is not None
    assert result.verification is not None


def test_executorch_is_refused(checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model_pt(tmp_path / "tiny.pt", checkpoint.model, dict(checkpoint.files))
    for target in ("executorch", "all"):
        options = ["--target", target, "--kv-cache", "int8", "-o", str(tmp_path / "out")]
        assert cli.main([str(tmp_path / "tiny.pt"), *options]) == 1
        text = capsys.readouterr().err
        assert text.startswith("mote-export: target executorch has no KV cache in int8: ")
        assert "--target onnx" in text
        assert text.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_values_that_are_no_format_of_a_cache(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(MoteError, match=r"^kv_cache is 'int4', expected 'float32', 'int8'"):
        PackOptions(kv_cache="int4")
    document = json.loads((exported / "mote.json").read_text())
    for value, found in (("int4", "'int4'"), (8, "8")):
        document["quantization"]["kv_cache"]["format"] = value
        with pytest.raises(ExportFolderError, match=rf"field 'quantization.kv_cache.format' is {found}"):
            Manifest.parse(tmp_path, document)
    for old in ({}, {"quantization": None}, {"quantization": {"linear": "int4"}}, {"quantization": {"kv_cache": None}}):
        assert Manifest.parse(tmp_path, {**document, "quantization": None, **old}).kv_cache == "float32"


def test_what_is_said_on_screen(
    checkpoint: Checkpoint, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--sample is of use without verification too; built-in samples alone are warned of."""
    save_model_pt(tmp_path / "tiny.pt", checkpoint.model, dict(checkpoint.files))
    options = [str(tmp_path / "tiny.pt"), "--target", "onnx", "--no-verify", "--kv-cache", "int8"]
    for index, sample in enumerate(([], ["--sample", "-", "How?"])):
        assert cli.main([*options, *sample, "-o", str(tmp_path / str(index))]) == 0
        captured = capsys.readouterr()
        assert "KV cache: int8, 128 bytes a position." in captured.out
        assert f"positions of {4 + index} samples, {index} of them given, and a margin of 1.98." in captured.err
        assert ("warning: the KV cache in int8 is calibrated on built-in samples alone" in captured.err) == (index == 0)
    with pytest.raises(SystemExit):
        cli.main([str(tmp_path / "tiny.pt"), "--no-verify", "--sample", "-", "How?"])


def test_a_budget_counts_the_cache_as_it_is(checkpoint: Checkpoint) -> None:
    whole, quarter = (estimate_bytes(checkpoint, PackOptions(kv_cache=form), 100).cache for form in ("float32", "int8"))
    assert (whole, quarter) == (100 * 512, 100 * 128)


def test_a_report_has_both(tmp_path: Path, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.model.config.save_pretrained(tmp_path)
    assert report.main([str(tmp_path)]) == 0
    assert "KV cache, bytes a position: 512 in float32, 128 in int8." in capsys.readouterr().out
    assert report.main([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_cache_bytes_per_position"] == {"float32": 512, "int8": 128}
