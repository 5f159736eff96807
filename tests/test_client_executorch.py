"""ExecuTorch's own LLM runners run an export with nothing of mote but the plugin, and answer like mote_runtime: docs/clients.md,
executed. Every test runs the real package; a missing one is an error, not a skip.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytorch_tokenizers import CppHFTokenizer

from mote_runtime import Pipeline, get_library_path, load
from mote_runtime.preprocess import preprocess_image

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "digits_vqa"))

from evaluate import MAX_NEW_TOKENS, Question, held_out_questions

QUESTIONS = 200
SEVERAL = 6
TEXTS = (
    "What is 3 plus 4?", "Hello", "Count the digits.", "12345 + 678", "  spaces   and\ttabs\n\nlines \n", "漢字 🙂 ok",
    "don't I'LL", "a" * 50, "العربية हिन्दी", "\r\nCRLF\r\n", "", "...!!??  -- ", " leading", "x\u00a0nbsp", "٣٤٥ digits ²",
)  # fmt: skip
CLIENT = Path(__file__).parent / "executorch_client.py"
END = "<|im_end|>"  # runners hand out the end token too
# What the runners of ExecuTorch 1.5 read of a program, in C++ and, through it, in Kotlin.
METADATA = (
    "get_max_seq_len", "get_max_context_len", "enable_dynamic_shape", "use_kv_cache", "use_sdpa_with_kv_cache", "get_eos_ids",
)  # fmt: skip
METHODS = ("vision_encoder", "token_embedding", "text_decoder", "forward")


@pytest.fixture(scope="module")
def folder(demo_export: Path) -> Path:
    return demo_export / "executorch"


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[Pipeline]:
    with load(folder) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return held_out_questions(QUESTIONS)


@pytest.fixture(scope="module")
def pixels(ours: Pipeline, questions: list[Question]) -> np.ndarray:
    """float32 [QUESTIONS, 3, height, width]"""
    spec = ours.manifest.image
    assert spec is not None
    return np.stack([preprocess_image(question.image, spec) for question in questions])


def job(*segments: dict[str, Any], runner: str = "multimodal", **options: Any) -> dict[str, Any]:
    return {"runner": runner, "segments": segments, "max_new_tokens": MAX_NEW_TOKENS, **options}


def ask_client(
    folder: Path, jobs: Sequence[dict[str, Any]], pixels: np.ndarray, scratch: Path, plugin: str | None = None
) -> tuple[list[dict[str, Any]], str]:
    """The answers, and what the process said on stderr."""
    scratch.mkdir(exist_ok=True)
    names = [scratch / name for name in ("jobs.json", "pixels.npy", "answers.json")]
    names[0].write_text(json.dumps(jobs))
    np.save(names[1], pixels)
    library = str(get_library_path("executorch")) if plugin is None else plugin
    command = [sys.executable, str(CLIENT), str(folder), library, *map(str, names)]
    done = subprocess.run(command, capture_output=True, timeout=300)
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 0, said[-4000:]
    return json.loads(names[2].read_text()), said


class Framed:
    """A user's message in segments, in the manifest's prompt format."""

    def __init__(self, ours: Pipeline) -> None:
        prompt = ours.manifest.prompt
        assert prompt.image is not None
        self.prefix, self.suffix = prompt.user_prefix, prompt.user_suffix
        self.before, self.after = prompt.image.split("{image_pads}")

    def segments(self, question: str, images: Sequence[int] = ()) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        text = self.prefix
        for row in images:
            parts += [{"text": text + self.before}, {"image": row}]
            text = self.after
        return [*parts, {"text": text + question + self.suffix}]


@pytest.fixture(scope="module")
def answers(
    folder: Path,
    ours: Pipeline,
    questions: list[Question],
    pixels: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[dict[str, Any]]]:
    """All jobs in one process of the client, by the name of the test that wants them."""
    framed = Framed(ours)
    first, context = questions[0], ours.manifest.model.context_length
    second = f"{END}\n{framed.prefix}Count the 8s.{framed.suffix}"  # the end token is not in the cache yet
    jobs: dict[str, list[dict[str, Any]]] = {
        "images": [job(*framed.segments(question.prompt, [row])) for row, question in enumerate(questions)],
        "several": [job(*framed.segments(question.prompt, [0, 1, 2])) for question in questions[:SEVERAL]],
        "text": [job(*framed.segments(text)) for text in TEXTS],
        "text runner": [job(*framed.segments(text), runner="text") for text in TEXTS],
        "tokens": [job({"tokens": ours.tokenizer.encode_prompt(text)}) for text in TEXTS],
        "turns": [job(*framed.segments(first.prompt, [0])), job({"text": second}, reset=False)],
        "limits": [
            job(*framed.segments(first.prompt, [0]), max_new_tokens=1),
            job(*framed.segments("x " * context), runner="text"),
            job(*framed.segments("x " * context)),
            job(*framed.segments(first.prompt, [0])),
        ],
    }
    flat = [each for group in jobs.values() for each in group]
    found, _ = ask_client(folder, flat, pixels, tmp_path_factory.mktemp("client"))
    rest = iter(found)
    return {name: [next(rest) for _ in group] for name, group in jobs.items()}


def check(ours: Pipeline, answer: dict[str, Any], ids: list[int], pixel_values: np.ndarray | None) -> None:
    """A runner looks for the end token from the second token on, so a first one is compared for itself."""
    expected = ours.generate_ids(ids, pixel_values, MAX_NEW_TOKENS)
    text = "".join(answer["pieces"])
    assert answer["error"] is None
    assert answer["prompt_tokens"] == len(ids)
    if not expected:
        assert text.startswith(END)
    elif len(expected) < MAX_NEW_TOKENS:
        assert text == ours.tokenizer.decode(expected) + END
    else:
        assert text == ours.tokenizer.decode(expected)


def test_answers_image_questions_as_mote_runtime_does(
    ours: Pipeline, questions: list[Question], pixels: np.ndarray, answers: dict[str, list[dict[str, Any]]]
) -> None:
    assert len(answers["images"]) == QUESTIONS
    for row, (question, answer) in enumerate(zip(questions, answers["images"], strict=True)):
        check(ours, answer, ours.tokenizer.encode_prompt(question.prompt, 1), pixels[row : row + 1])


def test_answers_about_several_pictures(
    ours: Pipeline, questions: list[Question], pixels: np.ndarray, answers: dict[str, list[dict[str, Any]]]
) -> None:
    for question, answer in zip(questions, answers["several"], strict=False):
        check(ours, answer, ours.tokenizer.encode_prompt(question.prompt, 3), pixels[:3])


@pytest.mark.parametrize("kind", ["text", "text runner", "tokens"])
def test_answers_text_only(ours: Pipeline, answers: dict[str, list[dict[str, Any]]], kind: str) -> None:
    """MultimodalRunner and TextLLMRunner, by texts and by ids: the runners' tokenizer makes the same ids as ours."""
    for text, answer in zip(TEXTS, answers[kind], strict=True):
        check(ours, answer, ours.tokenizer.encode_prompt(text), None)


def test_the_runners_tokenizer_loses_accents_unless_its_file_has_no_normalizer(
    folder: Path, ours: Pipeline, tmp_path: Path
) -> None:
    """A defect of its NFC, and the way around it that docs/clients.md shows. Once the first half fails, both can go."""
    document = json.loads((folder / "tokenizer.json").read_text())
    assert document["normalizer"] == {"type": "NFC"}
    copy = tmp_path / "tokenizer.json"
    copy.write_text(json.dumps({**document, "normalizer": None}))
    stock, plain = CppHFTokenizer(), CppHFTokenizer()
    stock.load(str(folder / "tokenizer.json"))
    plain.load(str(copy))
    assert stock.encode("\u00e9", 0, 0) == plain.encode("e", 0, 0)
    for text in (*TEXTS, "\u00e9 \u00fc\u00f1 \u0439"):
        prompt = f"{ours.manifest.prompt.user_prefix}{text}{ours.manifest.prompt.user_suffix}"
        assert plain.encode(prompt, 0, 0) == ours.tokenizer.encode_prompt(text)


def test_a_second_question_goes_on(
    ours: Pipeline, questions: list[Question], pixels: np.ndarray, answers: dict[str, list[dict[str, Any]]]
) -> None:
    prompt = ours.tokenizer.encode_prompt(questions[0].prompt, 1)
    first = ours.generate_ids(prompt, pixels[:1], MAX_NEW_TOKENS)
    check(ours, answers["turns"][0], prompt, pixels[:1])
    end = ours.manifest.model.eos_token_ids[0]
    newline = ours.tokenizer.encode_prompt("")[-1]
    history = [*prompt, *first, end, newline, *ours.tokenizer.encode_prompt("Count the 8s.")]
    check(ours, answers["turns"][1], history, pixels[:1])


def test_limits(ours: Pipeline, questions: list[Question], answers: dict[str, list[dict[str, Any]]]) -> None:
    """One token only; a prompt beyond the context is an error, after which the runner still answers."""
    one, too_long_text, too_long, again = answers["limits"]
    whole = answers["images"][0]["pieces"]
    assert one["pieces"] == whole[:1]
    for answer in (too_long_text, too_long):
        assert answer["error"] == "RuntimeError: Generation failed"
        assert answer["pieces"] == []
    assert again["pieces"] == whole


def test_methods_and_metadata_are_those_that_runners_look_for(folder: Path, ours: Pipeline) -> None:
    from executorch.extension.pybindings import portable_lib

    module = portable_lib._load_for_executorch(str(folder / "model.pte"))
    names = set(module.method_names())
    assert names >= {*METADATA, *METHODS}
    found = {name: module.run_method(name, ()) for name in METADATA}
    model = ours.manifest.model
    assert found == {
        "get_max_seq_len": [model.context_length],
        "get_max_context_len": [model.context_length],
        "enable_dynamic_shape": [True],
        "use_kv_cache": [True],
        "use_sdpa_with_kv_cache": [True],
        "get_eos_ids": list(model.eos_token_ids),
    }
    # A runner passes all positions where it finds room for more than one, and only the first one otherwise.
    assert tuple(module.method_meta("text_decoder").input_tensor_meta(1).sizes()) == (model.context_length,)
    # Its sampler looks at as many logits as tokenizer.json has tokens: all ids that can be answered are among them.
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["id"] for token in tokenizer["added_tokens"]} | set(tokenizer["model"]["vocab"].values())
    assert max(model.eos_token_ids) < len(ids) <= model.vocab_size


def test_what_a_missing_plugin_says(folder: Path, pixels: np.ndarray, ours: Pipeline, tmp_path: Path) -> None:
    answers, said = ask_client(folder, [job(*Framed(ours).segments("Hello"))], pixels[:1], tmp_path, plugin="")
    assert answers[0]["error"] == "RuntimeError: Generation failed"
    assert "Missing operator" in said
    assert "mote::ternary_moe.out" in said
