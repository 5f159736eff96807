"""optimum on MoTE checkpoints: the real optimum-cli and main_export, and ONNX Runtime classes that generate.

Here optimum is imported before mote_export; optimum-cli imports them the other way round.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from optimum.exporters.onnx import convert, main_export
from optimum.exporters.tasks import TasksManager
from optimum.onnxruntime import ORTModelForCausalLM
from tiny import tiny_checkpoint
from transformers import AutoProcessor, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, pipeline

import mote_export
from mote_export.checkpoint import Checkpoint, load_checkpoint, save_folder
from mote_export.integrations.optimum.configuration import TASKS
from mote_export.integrations.optimum.modeling import ORTModelForImageTextToText
from mote_export.integrations.optimum.sessions import plugin_options
from mote_export.integrations.optimum.text_decoder import verify_text_decoder
from mote_export.passes import apply_passes, pack_ternary_experts
from mote_export.verify import VerificationError, reference_greedy
from mote_runtime import get_library_path, load
from mote_runtime.errors import MoteError

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits_vqa"
sys.path.insert(0, str(EXAMPLE))

from evaluate import MAX_NEW_TOKENS, held_out_questions  # noqa: E402

QUESTIONS = 30
TEXTS = ("top left 3. top right 4.\nIs there a 3?", "What is the sum of 3 and 4?", "Hello", "")
GRAPHS = ("vision.onnx", "embedding.onnx", "model.onnx")
TEXT_TASK = "text-generation-with-past"


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    save_folder(path, tiny_checkpoint())
    return path


@pytest.fixture(scope="module")
def reference() -> Checkpoint:
    """The demo model with packed experts."""
    loaded = load_checkpoint(EXAMPLE / "model.pt")
    apply_passes(loaded.model.get_decoder(), [pack_ternary_experts()])
    return loaded


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's decoder as optimum exports text models."""
    folder = tmp_path_factory.mktemp("text")
    save_folder(folder / "digits", load_checkpoint(EXAMPLE / "model.pt"))
    main_export(str(folder / "digits"), folder / "onnx", task=TEXT_TASK)
    return folder / "onnx"


@pytest.fixture(scope="module")
def pictures(demo_export: Path) -> ORTModelForImageTextToText:
    return ORTModelForImageTextToText.from_pretrained(demo_export / "onnx")


@pytest.fixture(scope="module")
def processor(demo_export: Path) -> Any:
    return AutoProcessor.from_pretrained(demo_export / "onnx")


@pytest.mark.long
def test_the_command_writes_what_mote_export_writes(tiny_folder: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [Path(sys.executable).parent / "optimum-cli", "export", "onnx", "--model", tiny_folder, tmp_path / "theirs"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    mote_export.export(tiny_folder, tmp_path / "ours", target="onnx", verify=False)
    ours, theirs = ({file.name for file in (tmp_path / name).iterdir()} for name in ("ours", "theirs"))
    assert ours == theirs
    for name in (file for graph in GRAPHS for file in (graph, f"{graph}.data") if file in ours):
        assert (tmp_path / "theirs" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes(), name
    assert json.loads((tmp_path / "theirs" / "mote.json").read_text())["verification"]["greedy_tokens_compared"] > 0
    with load(tmp_path / "theirs") as model:
        assert model.manifest.target == "onnxruntime"


def ternary_layers(path: Path) -> list[dict[str, onnx.TensorProto]]:
    """Initializers of each mote::TernaryMoE node."""
    graph = onnx.load(path, load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [node for node in graph.node if (node.domain, node.op_type) == ("mote", "TernaryMoE")]
    return [{name: tensors[name] for name in node.input if name in tensors} for node in nodes]


def test_text_decoders_have_packed_experts(text_folder: Path, reference: Checkpoint) -> None:
    layers = ternary_layers(text_folder / "model.onnx")
    assert len(layers) == len(reference.model.get_decoder().layers)
    for tensors in layers:
        assert sum(tensor.data_type == onnx.TensorProto.UINT8 for tensor in tensors.values()) >= 2
    session = onnxruntime.InferenceSession(text_folder / "model.onnx", plugin_options())
    assert [value.name for value in session.get_inputs()][:2] == ["input_ids", "attention_mask"]


def test_text_decoders_answer_as_torch(text_folder: Path, reference: Checkpoint) -> None:
    """optimum's own class, with the plugin as the only thing of ours."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    model = ORTModelForCausalLM.from_pretrained(text_folder, session_options=options)
    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    for text in TEXTS:
        chat = [{"role": "user", "content": text}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        found = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)[0, inputs["input_ids"].shape[1] :]
        expected, _ = reference_greedy(reference.model, inputs["input_ids"][0].tolist(), None, MAX_NEW_TOKENS)
        assert found.tolist() == expected, text


def test_text_decoders_want_the_plugin(text_folder: Path) -> None:
    with pytest.raises(Exception, match="mote"):
        ORTModelForCausalLM.from_pretrained(text_folder)


def test_pictures_answer_as_torch(pictures: ORTModelForImageTextToText, processor: Any, reference: Checkpoint) -> None:
    for question in held_out_questions(QUESTIONS):
        content = [{"type": "image", "image": question.image}, {"type": "text", "text": question.prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = inputs["input_ids"][0].tolist()
        found = pictures.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)[0, len(ids) :]
        expected, _ = reference_greedy(reference.model, ids, inputs["pixel_values"].numpy(), MAX_NEW_TOKENS)
        assert found.tolist() == expected, question.prompt


@pytest.mark.parametrize("text", TEXTS)
def test_without_a_picture(
    pictures: ORTModelForImageTextToText, processor: Any, reference: Checkpoint, text: str
) -> None:
    chat = [{"role": "user", "content": text}]
    inputs = processor.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    found = pictures.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)[0, inputs["input_ids"].shape[1] :]
    expected, _ = reference_greedy(reference.model, inputs["input_ids"][0].tolist(), None, MAX_NEW_TOKENS)
    assert found.tolist() == expected


def test_pipeline(pictures: ORTModelForImageTextToText, processor: Any) -> None:
    """transformers' own pipeline over ONNX Runtime."""
    ask = pipeline("image-text-to-text", model=pictures, processor=processor, framework="pt")
    scene = EXAMPLE / "images" / "scene-5.png"
    content = [{"type": "image", "path": str(scene)}, {"type": "text", "text": "What is the sum of the digits?"}]
    [found] = ask(text=[{"role": "user", "content": content}], max_new_tokens=MAX_NEW_TOKENS, return_full_text=False)
    assert found["generated_text"] == "9+4+2=15"


def test_pictures_and_prompt_must_fit(pictures: ORTModelForImageTextToText) -> None:
    pixels = torch.zeros(1, 3, 48, 48)
    with pytest.raises(MoteError, match="0 image tokens, the pictures have 16 features"):
        pictures.generate(torch.tensor([[1, 2, 3]]), pixel_values=pixels, max_new_tokens=1)


def test_one_prompt_without_padding(pictures: ORTModelForImageTextToText) -> None:
    with pytest.raises(MoteError, match="the batch holds 2 prompts or beams"):
        pictures.generate(torch.tensor([[1, 2, 3]]), num_beams=2, max_new_tokens=1)
    with pytest.raises(MoteError, match="without padding"):
        pictures.generate(torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[0, 1, 1]]), max_new_tokens=1)


def test_exports_while_loading(tiny_folder: Path) -> None:
    model = ORTModelForImageTextToText.from_pretrained(tiny_folder, export=True)
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3).shape == (1, 6)


def test_a_folder_of_text_has_no_pictures(text_folder: Path) -> None:
    with pytest.raises(MoteError, match="holds a 'qwen2' model"):
        ORTModelForImageTextToText.from_pretrained(text_folder)


BAD_REQUESTS = {
    "optimize": ({"optimize": "O2"}, "optimize is 'O2', which does not apply"),
    "slim": ({"slim": True}, "slim is True"),
    "atol": ({"atol": 1e-3}, "atol is 0.001"),
    "half": ({"dtype": "fp16"}, "the model is torch.float16, expected torch.float32"),
    "opset": ({"opset": 11}, "opset is 11, expected 18 to 23"),
    "unknown": ({"model_kwargs": {"bits": 2}}, "model_kwargs has 'bits', expected packing"),
    "packing": ({"model_kwargs": {"packing": "3bit"}}, "3bit"),
    "context": ({"model_kwargs": {"context_length": "64"}}, "the context length is '64'"),
    "rtol": ({"model_kwargs": {"rtol": "0.1"}}, "rtol is '0.1', expected a number"),
    "cache": ({"model_kwargs": {"kv_cache": "int4"}}, "kv_cache is 'int4', expected 'float32'"),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("request_name", BAD_REQUESTS)
def test_bad_requests(tiny_folder: Path, tmp_path: Path, request_name: str, task: str) -> None:
    options, message = BAD_REQUESTS[request_name]
    with pytest.raises(MoteError, match=message) as caught:
        main_export(str(tiny_folder), tmp_path / "out", task=task, **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["kv_cache", "linear"])
def test_what_a_text_decoder_keeps_in_float32(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MoteError, match=rf"^{name} is 'int8', expected 'float32' for the task"):
        main_export(str(tiny_folder), tmp_path / "out", task=TEXT_TASK, model_kwargs={name: "int8"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["text-generation", "image-text-to-text", "fill-mask"])
def test_other_tasks_are_refused_by_optimum(tiny_folder: Path, tmp_path: Path, task: str) -> None:
    with pytest.raises(ValueError, match=r"only supports the tasks .* for mote"):
        main_export(str(tiny_folder), tmp_path / "out", task=task)


def test_a_failed_verification_leaves_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="more than the tolerance of 0"):
        main_export(str(tiny_folder), tmp_path / "out", task=TEXT_TASK, model_kwargs={"rtol": 0.0})
    assert list(tmp_path.iterdir()) == []


def test_verification_sees_another_model(text_folder: Path) -> None:
    other = load_checkpoint(EXAMPLE / "model.pt")
    apply_passes(other.model.get_decoder(), [pack_ternary_experts()])
    with torch.no_grad():
        other.model.get_decoder().layers[2].input_layernorm.weight.mul_(1.2)
    with pytest.raises(VerificationError):
        verify_text_decoder(text_folder, other, other.model, 0.02)


def test_a_full_folder_is_not_written_to(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for task in TASKS:
        with pytest.raises(MoteError, match="is not empty"):
            main_export(str(tiny_folder), tmp_path, task=task)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_how_experts_are_stored(tiny_folder: Path, tmp_path: Path) -> None:
    kwargs = {
        "packing": "1.6bit",
        "shared_expert": "int4",
        "shared_group_size": 32,
        "context_length": 64,
    }
    main_export(str(tiny_folder), tmp_path / "out", task=TEXT_TASK, model_kwargs=kwargs)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["max_position_embeddings"]) == ("qwen2", 64)
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (tokenizer["add_bos_token"], tokenizer["add_eos_token"]) == (False, False)
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    [stored] = {
        tuple(onnx.helper.get_node_attr_value(node, name) for name in ("packing", "shared_format", "shared_group_size"))
        for node in model.graph.node
        if node.op_type == "TernaryMoE"
    }
    assert stored == (b"1.6bit", b"int4", 32)


def test_other_models_are_optimums(tmp_path: Path) -> None:
    """What stands in for its functions passes everything else on."""
    stock = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=8,
        )
    )
    stock.save_pretrained(tmp_path / "stock")
    with pytest.raises(RuntimeError, match="Cannot infer the task from a local directory"):
        TasksManager.infer_task_from_model(str(tmp_path / "stock"))
    with pytest.raises(ValueError, match="qwen2 doesn't support task"):
        convert.onnx_export_from_model(stock, tmp_path / "out", task="no-task-of-optimums")
    assert convert.onnx_export_from_model.__wrapped__.__module__ == "optimum.exporters.onnx.convert"
    main_export(str(tmp_path / "stock"), tmp_path / "exported", task=TEXT_TASK)
    ids = torch.tensor([[1, 2, 3]])
    logits = ORTModelForCausalLM.from_pretrained(tmp_path / "exported")(ids, torch.ones_like(ids)).logits
    with torch.no_grad():
        torch.testing.assert_close(logits, stock(ids).logits, atol=1e-4, rtol=1e-4)
