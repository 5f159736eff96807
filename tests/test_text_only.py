"""Models without pictures, on both targets: exported, verified, and run by mote_runtime, the native runner and stock clients."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxruntime_genai as og
import pytest
import torch
from test_runner import host_runner
from tiny import byte_tokenizer, tiny_text_checkpoint, tiny_text_config
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen2Config

import mote_export
from mote_export.api import checkpoint_of as checkpoint_of_model
from mote_export.checkpoint import Checkpoint, load_checkpoint, save_folder, save_model_pt
from mote_export.cli.export import main
from mote_export.defaults import DEFAULT_RTOL
from mote_export.exporter import choose_context, export
from mote_export.passes import PackOptions, apply_passes, pack_ternary_experts
from mote_export.text_tokens import QUESTION, around_question, plain_template
from mote_export.tokens import chat_template, prompt_spec, special_tokens
from mote_export.verify import Sample, verify_folder
from mote_runtime import get_library_path, load
from mote_runtime.cli import profile as profile_cli
from mote_runtime.cli import run as run_cli
from mote_runtime.errors import ImageError, MoteError
from mote_runtime.manifest import Manifest, PromptSpec
from mote_runtime.profile.prompt import write_prompt
from mote_runtime.profile.record import Record

TARGETS = ("onnx", "executorch")
RUNTIMES = {"onnx": "onnxruntime", "executorch": "executorch"}
STEPS = 12
QUESTIONS = ("Hello", "Count the digits in 1234.", "x" * 60)
PREFIX, SUFFIX = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def checkpoint_of(kind: type[PretrainedConfig], **changes: Any) -> Checkpoint:
    """With ASCII answers, as a runner's callback cannot take half a character: a row of zeros is never the likeliest token."""
    checkpoint = tiny_text_checkpoint(tiny_text_config(kind, tie_word_embeddings=False, **changes))
    tokenizer = byte_tokenizer()
    with torch.no_grad():
        for token_id in range(tokenizer.get_vocab_size()):
            text = tokenizer.decode([token_id], skip_special_tokens=False)
            if not (len(text) == 1 and text.isprintable() and text.isascii()):
                checkpoint.model.lm_head.weight[token_id] = 0
    return checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mote-export model.pt` on a Llama of one layer; the folder with onnx/ and executorch/, and model.pt beside it."""
    folder = tmp_path_factory.mktemp("text")
    checkpoint = checkpoint_of(LlamaConfig, num_hidden_layers=1)
    save_model_pt(folder / "model.pt", checkpoint.model, dict(checkpoint.files))
    options = ["--shared-expert", "int8", "--sample", "-", "A question of its own?"]
    assert main([str(folder / "model.pt"), "-o", str(folder / "out"), *options]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def expected(exported: Path) -> dict[str, tuple[list[int], list[int]]]:
    """Prompt and greedy answer of torch to each question."""
    model = load_checkpoint(exported.parent / "model.pt").model
    apply_passes(model, [pack_ternary_experts(PackOptions("2bit", "int8"))])
    answers = {}
    for question in QUESTIONS:
        ids = byte_tokenizer().encode(f"{PREFIX}{question}{SUFFIX}", add_special_tokens=False).ids
        output = model.generate(torch.tensor([ids]), max_new_tokens=STEPS, do_sample=False)
        answers[question] = (ids, output[0, len(ids) :].tolist())
    assert len({tuple(answer) for _, answer in answers.values()}) == len(QUESTIONS), "the questions tell answers apart"
    return answers


@pytest.mark.parametrize("target", TARGETS)
def test_greedy_answers_are_torchs(
    exported: Path, expected: dict[str, tuple[list[int], list[int]]], target: str
) -> None:
    with load(exported / target) as pipeline:
        for question, (ids, answer) in expected.items():
            assert pipeline.tokenizer.encode_prompt(question) == ids
            found = pipeline.answer(None, question, max_new_tokens=STEPS)
            assert list(found.token_ids) == answer
            assert found.text == pipeline.tokenizer.decode(answer)


@pytest.mark.parametrize("target", TARGETS)
def test_logits_are_torchs(exported: Path, target: str) -> None:
    """Whole rows, along torch's own answer; the last sample fills the context but for the answer."""
    model = load_checkpoint(exported.parent / "model.pt").model
    apply_passes(model, [pack_ternary_experts(PackOptions("2bit", "int8"))])
    samples = [Sample("?"), Sample("Wie geht's? \u4f60\u597d"), Sample("x" * 90)]
    found = verify_folder(exported / target, model, samples, DEFAULT_RTOL)
    assert found.greedy_tokens_compared >= 2 * 16 + 8
    assert found.greedy_ties == 0


@pytest.mark.parametrize("target", TARGETS)
def test_the_manifest_says_that_there_are_no_pictures(exported: Path, target: str) -> None:
    manifest = Manifest.read(exported / target)
    manifest.verify()
    assert {path.name for path in (exported / target).iterdir()} == {*manifest.files, "mote.json"}
    assert manifest.image is None
    assert manifest.model.architecture == "MoteForCausalLM"
    assert (manifest.model.image_token_id, manifest.model.num_image_tokens) == (None, None)
    assert manifest.prompt == PromptSpec(PREFIX, None, SUFFIX)
    assert manifest.verification["samples"] == 3 + 1
    assert manifest.verification["greedy_tokens_compared"] > 0
    assert not {"vision.onnx", "processor_config.json", "preprocessor_config.json"} & manifest.files.keys()


def test_graphs_are_those_of_models_with_pictures(exported: Path) -> None:
    """But for image features, so that one code runs both."""
    embedding, decoder = (onnx.load(exported / "onnx" / name).graph for name in ("embedding.onnx", "model.onnx"))
    assert [value.name for value in embedding.input] == ["input_ids"]
    assert [value.name for value in embedding.output] == ["inputs_embeds"]
    assert [value.name for value in decoder.input][:2] == ["inputs_embeds", "attention_mask"]
    assert sum(node.op_type == "TernaryMoE" for node in decoder.node) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_picture_is_refused(exported: Path, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "model 'model' is text only; leave the image out"
    picture = np.zeros((4, 4, 3), np.uint8)
    with load(exported / target) as pipeline:
        with pytest.raises(ImageError, match=message):
            pipeline.answer(picture, "What?")
        with pytest.raises(ImageError, match=message):
            pipeline.generate_ids([1, 2], np.zeros((1, 3, 4, 4), np.float32))
    arguments = [str(exported), "--runtime", RUNTIMES[target], "--image", "any.png", "--prompt", "What?"]
    assert run_cli.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_mote_run_needs_no_image(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli.main([str(exported), "--prompt", "Hello", "--max-new-tokens", "4", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) == 4


def test_onnxruntime_genai_runs_the_folder(exported: Path, expected: dict[str, tuple[list[int], list[int]]]) -> None:
    """As its documentation says of text models, with nothing of mote but the folder."""
    model = og.Model(str(exported / "onnx"))
    tokenizer = og.Tokenizer(model)
    for shares_buffer in (True, False):
        for question, (ids, answer) in expected.items():
            prompt = tokenizer.apply_chat_template(
                json.dumps([{"role": "user", "content": question}]), add_generation_prompt=True
            )
            assert tokenizer.encode(prompt).tolist() == ids
            parameters = og.GeneratorParams(model)
            parameters.set_search_options(
                max_length=len(ids) + STEPS, do_sample=False, past_present_share_buffer=shares_buffer
            )
            generator = og.Generator(model, parameters)
            generator.append_tokens(ids)
            while not generator.is_done():
                generator.generate_next_token()
            assert generator.get_sequence(0).tolist() == ids + answer
            generator = og.Generator(model, parameters)  # the same in two turns
            for turn in (ids + answer[:2], answer[2:4]):
                generator.append_tokens(turn)
            generator.generate_next_token()
            assert int(generator.get_next_tokens()[0]) == answer[4]
    with pytest.raises(RuntimeError, match="not supported for decoder-pipeline"):
        generator.rewind_to(3)


def test_executorchs_text_runner_runs_the_program(
    exported: Path, expected: dict[str, tuple[list[int], list[int]]], capfd: pytest.CaptureFixture[str]
) -> None:
    with load(exported / "executorch"):  # brings the operators of attention and experts into the process
        from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    folder = exported / "executorch"
    runner = TextLLMRunner(str(folder / "model.pte"), str(folder / "tokenizer.json"))
    for question, (ids, answer) in expected.items():
        pieces: list[str] = []
        counts: list[int] = []
        config = GenerationConfig(echo=False, max_new_tokens=STEPS, temperature=0.0)
        runner.reset()
        prompt = f"{PREFIX}{question}{SUFFIX}"
        runner.generate(
            prompt, config, pieces.append, lambda stats, counts=counts: counts.append(stats.num_prompt_tokens)
        )
        assert counts == [len(ids)]
        assert "".join(pieces) == byte_tokenizer().decode(answer)


@pytest.mark.parametrize("target", TARGETS)
def test_the_native_runner_answers(
    exported: Path, expected: dict[str, tuple[list[int], list[int]]], target: str, tmp_path: Path
) -> None:
    ids, answer = expected["Hello"]
    write_prompt(tmp_path / "prompt.bin", Manifest.read(exported / target), ids)
    runtime_library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    command = [
        host_runner(), "--runtime", RUNTIMES[target], "--model", exported / target, "--prompt", tmp_path / "prompt.bin",
        "--output", tmp_path / "record.json", "--max-new-tokens", str(STEPS), "--repetitions", "1", "--warmup", "0",
        "--runtime-library", runtime_library, "--plugin", get_library_path(RUNTIMES[target]),  # type: ignore[arg-type]
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    record = Record.from_json(json.loads((tmp_path / "record.json").read_text()))
    assert list(record.repetitions[0].token_ids) == answer


def test_methods_and_metadata_of_the_program(exported: Path) -> None:
    from executorch.extension.pybindings import portable_lib

    program = portable_lib._load_for_executorch(str(exported / "executorch" / "model.pte"))
    constants = {
        "get_max_seq_len": [128], "get_max_context_len": [128], "get_vocab_size": [262], "use_kv_cache": [True],
        "use_sdpa_with_kv_cache": [True], "enable_dynamic_shape": [True], "get_eos_ids": [258], "get_n_layers": [1],
    }  # fmt: skip
    assert set(program.method_names()) == {"token_embedding", "text_decoder", "forward", *constants}
    assert {name: program.run_method(name, ()) for name in constants} == constants


def test_what_an_export_refuses_of_a_text_model(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(LlamaConfig, num_hidden_layers=1)
    with pytest.raises(MoteError, match="model 'tiny-text' is text only, but a sample has a picture"):
        export(checkpoint, tmp_path / "out", ["onnx"], samples=[Sample("?", np.zeros((4, 4, 3), np.uint8))])
    with pytest.raises(MoteError, match=r"context length is 8, expected 32 \(a short question and its answer\) to 128"):
        choose_context(checkpoint, 8)
    assert choose_context(checkpoint, None) == 128


def with_files(tokenizer: Tokenizer | None = None, eos_token_id: int | None = 258, **files: Any) -> Checkpoint:
    """A text model of one layer with other companion files; `tokenizer_config` is a dictionary."""
    checkpoint = tiny_text_checkpoint(tiny_text_config(Qwen2Config, num_hidden_layers=1, eos_token_id=eos_token_id))
    checkpoint.model.generation_config.eos_token_id = eos_token_id
    config = files.pop("tokenizer_config", {})
    texts = {"tokenizer.json": (tokenizer or byte_tokenizer()).to_str(), "tokenizer_config.json": json.dumps(config)}
    return Checkpoint("text", checkpoint.model, {**texts, **files})


def bare_tokenizer(*special: str) -> Tokenizer:
    """Bytes and other special tokens than Qwen2's; the first one is put before every text."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_tokenizer().get_vocab(with_added_tokens=False), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    begin = special[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return tokenizer


def test_a_template_of_its_own_makes_the_prompt() -> None:
    template = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    checkpoint = with_files(**{"chat_template.jinja": template})
    assert prompt_spec(checkpoint) == PromptSpec(f"<|im_start|>system\nBe kind.<|im_end|>\n{PREFIX}", None, SUFFIX)
    assert chat_template(checkpoint) == template


def test_llama_3s_template_and_end_tokens() -> None:
    names = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")
    tokenizer = bare_tokenizer(*names)
    begin, *_, eot, end = (tokenizer.token_to_id(name) for name in names)
    checkpoint = with_files(
        tokenizer,
        eos_token_id=7,  # the files' own decide
        tokenizer_config={"bos_token": {"content": names[0]}, "eos_token": names[3], "chat_template": LLAMA3},
        **{"generation_config.json": json.dumps({"eos_token_id": [end, eot]})},
    )
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    expected = PromptSpec(names[0] + head.format("user"), None, names[3] + head.format("assistant"))
    assert prompt_spec(checkpoint) == expected
    tokens = special_tokens(checkpoint)
    assert (tokens.bos_token_id, tokens.eos_token_ids, tokens.pad_token_id) == (begin, (end, eot), end)


def test_without_template_and_chat_tokens_a_prompt_is_its_text() -> None:
    tokenizer = bare_tokenizer("<s>", "</s>")
    checkpoint = with_files(tokenizer, None, tokenizer_config={"eos_token": "</s>", "bos_token": "<s>"})
    assert prompt_spec(checkpoint) == PromptSpec("<s>", None, "")
    assert special_tokens(checkpoint).eos_token_ids == (tokenizer.token_to_id("</s>"),)
    assert chat_template(checkpoint) == "{{ \"<s>\" }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert around_question(plain_template("<\U0001f600>"), {}) == ("<\U0001f600>", "")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"chat_template.jinja": "{{ messages"}, "the chat template cannot be used: TemplateSyntaxError"),
        ({"chat_template.jinja": "{{ raise_exception('no') }}"}, "the chat template cannot be used: TemplateError: no"),
        ({"chat_template.jinja": "{{ ''.__class__.__mro__ }}"}, "the chat template cannot be used: SecurityError"),
        ({"chat_template.jinja": "Hello"}, "does not hold the user's message once"),
        ({"chat_template.jinja": "{{ messages[0].content * 2 }}"}, "does not hold the user's message once"),
        ({"chat_template.jinja": "x" * 70000}, "the chat template has 70000 characters"),
        ({"generation_config.json": '{"eos_token_id": 999}'}, "the end token 999, expected the id of a token"),
        ({"generation_config.json": '{"eos_token_id": -1}'}, "the end token -1, expected the id of a token"),
        ({"generation_config.json": '{"eos_token_id": "x"}'}, "the end token 'x', expected the id of a token"),
        ({"generation_config.json": "[]"}, "generation_config.json holds a list"),
        ({"eos_token_id": None, "tokenizer": bare_tokenizer("<s>")}, "names no token that ends an answer"),
    ],
)
def test_files_that_make_no_prompt_are_refused(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MoteError, match=message):
        export(with_files(**files), tmp_path / "out", ["onnx"])
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_whose_tokens_depend_on_where_a_text_stands_is_refused(tmp_path: Path) -> None:
    """SentencePiece's mark of a word's beginning, which a text gets at the beginning of a string but not behind a special token."""
    characters = ["<unk>", *sorted({*QUESTION, "\u2581"} - {" "})]
    tokenizer = Tokenizer(models.BPE({text: index for index, text in enumerate(characters)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    template = "<s>{{ messages[0].content }}"
    with pytest.raises(MoteError, match="makes other tokens of a text in a prompt than of the text alone"):
        export(with_files(tokenizer, 0, **{"chat_template.jinja": template}), tmp_path / "out", ["onnx"])


def test_a_model_in_memory_comes_with_its_tokenizer(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(LlamaConfig, num_hidden_layers=1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<|im_end|>")
    found = checkpoint_of_model(checkpoint.model, tokenizer)
    assert not found.has_vision
    assert found.files.keys() == {"tokenizer.json", "tokenizer_config.json"}
    assert special_tokens(found).eos_token_ids == (258,)
    with pytest.raises(MoteError, match=r"needs its tokenizer as well: pass processor=AutoTokenizer"):
        mote_export.export(checkpoint.model, tmp_path / "out")
    with pytest.raises(MoteError, match="the processor is a str, expected the tokenizer of a text model"):
        mote_export.export(checkpoint.model, tmp_path / "out", processor="tokenizer")  # type: ignore[arg-type]


@pytest.mark.long
def test_optimum_exports_one_graph_for_its_own_class(tmp_path: Path) -> None:
    """`--task auto` knows what a text model is for, and that it takes no pictures."""
    pytest.importorskip("optimum.exporters.onnx")
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTModelForCausalLM

    checkpoint = checkpoint_of(LlamaConfig, num_hidden_layers=1)
    save_folder(tmp_path / "model", checkpoint)
    main_export(str(tmp_path / "model"), tmp_path / "onnx")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(get_library_path("onnxruntime")))
    model = ORTModelForCausalLM.from_pretrained(tmp_path / "onnx", session_options=options)
    apply_passes(checkpoint.model, [pack_ternary_experts()])
    ids = torch.tensor([byte_tokenizer().encode(f"{PREFIX}Hello{SUFFIX}").ids])
    expected = checkpoint.model.generate(ids, max_new_tokens=STEPS, do_sample=False)
    assert model.generate(ids, max_new_tokens=STEPS, do_sample=False).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="only supports the tasks text-generation-with-past for mote_text"):
        main_export(str(tmp_path / "model"), tmp_path / "pictures", task="image-text-to-text-with-past")


@pytest.mark.long
@pytest.mark.parametrize("kind", [Qwen2Config, LlamaConfig, MistralConfig])
@pytest.mark.parametrize("is_portable", [False, True])
def test_decoders_verify_on_both_targets(kind: type[PretrainedConfig], is_portable: bool, tmp_path: Path) -> None:
    config = tiny_text_config(kind, num_hidden_layers=3, **({"sliding_window": None} if kind is MistralConfig else {}))
    checkpoint = tiny_text_checkpoint(config, layers=[0, 2], num_experts=3, top_k=2)
    results = export(
        checkpoint, tmp_path / "out", TARGETS, portable=is_portable, pack=PackOptions("1.6bit", "int4", 32)
    )
    for result in results:
        assert result.verification is not None
        assert result.verification.greedy_tokens_compared > result.verification.greedy_ties
        assert (Manifest.read(result.folder).plugin_library is None) == is_portable
    assert og.Model(str(tmp_path / "out" / "onnx")).type == "decoder-pipeline"


@pytest.mark.long
def test_mote_profile_measures_a_text_model(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--repetitions", "2", "--loads", "1", "--max-new-tokens", "4", "-o", str(tmp_path / "out"), "--json"]
    assert profile_cli.main([str(exported), *options]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert {run["record"]["num_images"] for run in runs} == {0}
    assert profile_cli.main([str(exported), *options, "--image", "any.png"]) == 1
    assert "is text only; leave the image out" in capsys.readouterr().err
