"""Stock transformers on a MoTE folder, after `import mote_export` and nothing else."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import tiny_checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline

import mote_export
from mote_export.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_folder
from mote_export.model import MoteConfig, MoteForConditionalGeneration
from mote_export.passes import apply_passes, pack_ternary_experts
from mote_export.tokens import CHAT_TEMPLATE
from mote_export.verify import reference_greedy
from mote_runtime.errors import MoteError
from mote_runtime.preprocess import preprocess_image

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits_vqa"
sys.path.insert(0, str(EXAMPLE))

from evaluate import MAX_NEW_TOKENS, Question, held_out_questions  # noqa: E402

QUESTIONS = 30
TEXTS = ("What is the sum of 3 and 4?", "top left 3. top right 4.\nIs there a 3?", "Hello", "")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(EXAMPLE / "model.pt")


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "digits"
    save_folder(path, checkpoint)
    return path


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return held_out_questions(QUESTIONS)


@pytest.fixture(scope="module")
def expected(folder: Path, questions: list[Question]) -> list[str]:
    """Greedy answers of the packed reference to prompts and pixels that mote_runtime prepared."""
    reference = load_checkpoint(EXAMPLE / "model.pt")
    apply_passes(reference.model.get_decoder(), [pack_ternary_experts()])
    return list(reference_answers(reference, questions))


def reference_answers(reference: Checkpoint, questions: list[Question]) -> Iterator[str]:
    from mote_export.manifest import image_spec, model_spec
    from mote_export.tokens import IMAGE, USER_PREFIX, USER_SUFFIX, load_tokenizer

    tokenizer, spec, image = load_tokenizer(reference), model_spec(reference, 256), image_spec(reference)
    pads = IMAGE.format(image_pads="<|image_pad|>" * spec.num_image_tokens)
    for question in questions:
        ids = tokenizer.encode(f"{USER_PREFIX}{pads}{question.prompt}{USER_SUFFIX}").ids
        tokens, _ = reference_greedy(
            reference.model, ids, preprocess_image(question.image, image)[None], MAX_NEW_TOKENS
        )
        yield tokenizer.decode(tokens)


def conversation(question: Question) -> list[dict[str, object]]:
    content = [{"type": "image", "image": question.image}, {"type": "text", "text": question.prompt}]
    return [{"role": "user", "content": content}]


def test_pipeline_answers_as_the_reference(folder: Path, questions: list[Question], expected: list[str]) -> None:
    ask = pipeline("image-text-to-text", model=str(folder))
    for question, answer in zip(questions, expected, strict=True):
        [found] = ask(text=conversation(question), max_new_tokens=MAX_NEW_TOKENS, return_full_text=False)
        assert found["generated_text"] == answer, question.prompt


def test_generate_answers_as_the_reference(folder: Path, questions: list[Question], expected: list[str]) -> None:
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model) is MoteForConditionalGeneration
    for question, answer in zip(questions, expected, strict=True):
        inputs = processor.apply_chat_template(
            conversation(question), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(tokens, skip_special_tokens=True) == answer, question.prompt


@pytest.mark.parametrize("task", ["image-text-to-text", "text-generation"])
def test_text_only(folder: Path, checkpoint: Checkpoint, task: str) -> None:
    """Both pipelines, on questions without a picture. The one for text samples unless it is told not to."""
    ask = pipeline(task, model=str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        content = [{"type": "text", "text": text}] if task == "image-text-to-text" else text
        messages = [{"role": "user", "content": content}]
        [found] = ask(messages, max_new_tokens=MAX_NEW_TOKENS, return_full_text=False, do_sample=False)
        ids = tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").input_ids
        tokens, _ = reference_greedy(checkpoint.model, ids, None, MAX_NEW_TOKENS)
        assert found["generated_text"] == tokenizer.decode(tokens, skip_special_tokens=True)


def test_round_trip(folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """transformers saves what it loaded, and mote reads that: same weights, and the same export."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    loaded = load_checkpoint(tmp_path / "again")
    torch.testing.assert_close(loaded.model.state_dict(), checkpoint.model.state_dict(), atol=0, rtol=0)
    [result] = mote_export.export(tmp_path / "again", tmp_path / "out", target="onnx")
    assert result.verification is not None
    assert result.verification.greedy_tokens_compared > 0


def test_a_checkpoint_without_template_gets_ours(tmp_path: Path) -> None:
    tiny = tiny_checkpoint()
    assert "chat_template.jinja" not in tiny.files
    save_folder(tmp_path / "tiny", tiny)
    processor = AutoProcessor.from_pretrained(tmp_path / "tiny")
    assert processor.chat_template == CHAT_TEMPLATE
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_ours_is_the_demo_models_template(checkpoint: Checkpoint) -> None:
    assert checkpoint.files["chat_template.jinja"] == CHAT_TEMPLATE


def test_a_tokenizers_own_template_is_kept(tmp_path: Path) -> None:
    tiny = tiny_checkpoint()
    configuration = json.loads(tiny.files["tokenizer_config.json"]) | {"chat_template": "{{ messages[0].content }}!"}
    files = {**tiny.files, "tokenizer_config.json": json.dumps(configuration)}
    save_folder(tmp_path / "tiny", Checkpoint("tiny", tiny.model, files))
    processor = AutoProcessor.from_pretrained(tmp_path / "tiny")
    assert processor.apply_chat_template([{"role": "user", "content": "Hi"}]) == "Hi!"


def test_generation_ends_where_the_chat_does(folder: Path) -> None:
    generation = AutoModelForImageTextToText.from_pretrained(folder).generation_config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(generation.eos_token_id) == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.convert_ids_to_tokens(generation.suppress_tokens) == ["<|image_pad|>"]


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_save_folder_replaces_nothing(checkpoint: Checkpoint, tmp_path: Path, taken: str) -> None:
    path = tmp_path / "taken"
    if taken == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="expected an absent or empty folder"):
        save_folder(path, checkpoint)
    assert [file.read_text() for file in (path if path.is_file() else path / "mine",)] == ["mine"]


def test_a_failed_save_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(MoteForConditionalGeneration, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        save_folder(tmp_path / "sub" / "folder", checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_alone(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is MoteConfig
    assert config.moe_settings is not None
    assert config.moe_settings.num_experts == 4


IMPORT_IN_ANY_ORDER = {
    "mote_export first": "import mote_export; import transformers.models.llava.modeling_llava",
    "transformers first": "import transformers; import mote_export",
}


@pytest.mark.parametrize("order", [pytest.param("mote_export first", marks=pytest.mark.long), "transformers first"])
def test_import_order_does_not_matter(folder: Path, order: str) -> None:
    load = f"from transformers import AutoConfig; print(type(AutoConfig.from_pretrained({str(folder)!r})).__name__)"
    assert python(f"{IMPORT_IN_ANY_ORDER[order]}; {load}") == "MoteConfig"


def test_importing_mote_export_imports_no_big_library() -> None:
    code = (
        "import mote_export, sys; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    assert python(code) == "[]"


def test_transformers_loads_as_ever_without_torch() -> None:
    """Where the model cannot be imported, a log line says so, and who imported transformers does not suffer."""
    code = (
        "import sys; sys.modules['torch'] = None; import mote_export, transformers; "
        "print(type(transformers.__spec__.loader).__name__, transformers.AutoConfig.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["SourceFileLoader", "AutoConfig"]
    assert "transformers does not know MoTE models" in run.stderr


def test_transformers_loads_as_ever_where_the_model_does_not() -> None:
    """Whatever a module of ours raises with a version of transformers that it was not made for."""
    code = (
        "import types; from mote_export.integrations import after_import; "
        "after_import.import_after('colorsys', 'wrong'); "
        "after_import.importlib = types.SimpleNamespace(import_module=lambda name: {}[name]); "
        "import colorsys; print(colorsys.rgb_to_hsv(0, 0, 0))"
    )
    assert python(code) == "(0.0, 0.0, 0)"


def test_what_others_do_with_a_spec_before_the_import() -> None:
    """is_available checks of other libraries look for transformers and do not import it; whoever copies the answer can."""
    code = (
        "import copy, importlib.util, pickle, sys, mote_export; spec = importlib.util.find_spec('transformers'); "
        "assert 'transformers' not in sys.modules; "
        "print([copier(spec).loader.get_filename('transformers') == spec.origin for copier in "
        "(copy.copy, copy.deepcopy, lambda spec: pickle.loads(pickle.dumps(spec)))])"
    )
    assert python(code) == "[True, True, True]"


def test_a_hostile_tokenizer_config_is_one_sentence(tmp_path: Path) -> None:
    tiny = tiny_checkpoint()
    for name, content in {"deep": "[" * 100_000, "list": "[]", "empty": ""}.items():
        files = {**tiny.files, "tokenizer_config.json": content}
        with pytest.raises(MoteError, match=r"tokenizer_config\.json (cannot be read|holds a list)"):
            save_folder(tmp_path / name, Checkpoint("tiny", tiny.model, files))
    assert list(tmp_path.iterdir()) == []


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()
