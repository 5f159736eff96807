"""L5: the demo model gives the same answers in torch, ONNX Runtime and ExecuTorch, right as often as its card says.

Both runtimes answer all held-out questions. torch, whose reference of the operator is slow, answers the first TORCH_QUESTIONS of
them (all with `make test-slow`).
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits_vqa"
sys.path.insert(0, str(EXAMPLE))

from evaluate import DEFAULT_QUESTIONS, MAX_NEW_TOKENS, Preprocessor, Question, accuracy_by_kind, held_out_questions  # noqa: E402

from mote_export.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from mote_export.defaults import DEFAULT_RTOL  # noqa: E402
from mote_export.passes import apply_passes, pack_ternary_experts  # noqa: E402
from mote_export.verify import tie_margin  # noqa: E402
from mote_runtime import Pipeline, load  # noqa: E402
from mote_runtime.preprocess import preprocess_image  # noqa: E402

QUESTIONS = DEFAULT_QUESTIONS
TORCH_QUESTIONS = int(os.environ.get("MOTE_TORCH_QUESTIONS", 300))
MIN_AGREEMENT = 0.995
MIN_ACCURACY = 0.90
MAX_SIZE = 16 * 1000 * 1000
RUNTIMES = ("onnxruntime", "executorch")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """The demo model with packed experts."""
    loaded = load_checkpoint(EXAMPLE / "model.pt")
    apply_passes(loaded.model.get_decoder(), [pack_ternary_experts()])
    return loaded


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return held_out_questions(QUESTIONS)


@pytest.fixture(scope="module")
def folder(demo_export: Path) -> Path:
    return demo_export


@pytest.fixture(scope="module")
def torch_answers(checkpoint: Checkpoint, questions: list[Question]) -> list[list[int]]:
    """Greedy answers of the packed reference, up to and without the end token, in batches of equal length."""
    preprocessor = Preprocessor.from_files(dict(checkpoint.files))
    eos = preprocessor.tokenizer.eos_token_id
    asked = questions[:TORCH_QUESTIONS]
    answers: list[list[int]] = [[] for _ in asked]
    for batch in preprocessor.batches(asked):
        generated = checkpoint.model.generate(
            input_ids=batch.input_ids, attention_mask=torch.ones_like(batch.input_ids), pixel_values=batch.pixel_values,
            max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=eos, pad_token_id=eos,
        )  # fmt: skip
        for row, tokens in zip(batch.rows, generated[:, batch.input_ids.shape[1] :].tolist(), strict=True):
            answers[row] = tokens[: tokens.index(eos)] if eos in tokens else tokens
    return answers


@dataclass(frozen=True)
class Asked:
    """A question as a runtime got it, and the ids of its greedy answer."""

    ids: list[int]
    pixels: np.ndarray
    answer: list[int]


@pytest.fixture(scope="module")
def runtime_answers(folder: Path, questions: list[Question]) -> dict[str, list[Asked]]:
    found = {}
    for runtime in RUNTIMES:
        with load(folder, runtime=runtime) as pipeline:
            found[runtime] = [ask(pipeline, question) for question in questions]
    return found


def ask(pipeline: Pipeline, question: Question) -> Asked:
    ids = pipeline.tokenizer.encode_prompt(question.prompt, num_images=1)
    assert pipeline.manifest.image is not None
    pixels = preprocess_image(question.image, pipeline.manifest.image)[np.newaxis]
    return Asked(ids, pixels, pipeline.generate_ids(ids, pixels, MAX_NEW_TOKENS))


def accuracy(checkpoint: Checkpoint, questions: list[Question], answers: list[list[int]]) -> dict[str, float]:
    tokenizer = Preprocessor.from_files(dict(checkpoint.files)).tokenizer
    return accuracy_by_kind(questions, tokenizer.batch_decode(answers, skip_special_tokens=True))


def is_tie(checkpoint: Checkpoint, ids: list[int], pixels: np.ndarray, common: list[int], token: int) -> bool:
    """Whether torch finds `token` as good as its own next token, after the part of the answer that both agree on."""
    with torch.no_grad():
        output = checkpoint.model(input_ids=torch.tensor([ids + common]), pixel_values=torch.from_numpy(pixels))
    logits = output.logits[0, -1].numpy()
    return bool(logits.max() - logits[token] <= tie_margin(logits, DEFAULT_RTOL))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_same_answers_as_torch(
    runtime: str,
    checkpoint: Checkpoint,
    questions: list[Question],
    runtime_answers: dict[str, list[Asked]],
    torch_answers: list[list[int]],
) -> None:
    eos = Preprocessor.from_files(dict(checkpoint.files)).tokenizer.eos_token_id
    asked = runtime_answers[runtime][: len(torch_answers)]
    unexplained, same = [], 0
    for question, found, expected in zip(questions, asked, torch_answers, strict=False):
        if found.answer == expected:
            same += 1
            continue
        pairs = zip(found.answer, expected, strict=False)
        split = next((i for i, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(found.answer), len(expected)))
        token = found.answer[split] if split < len(found.answer) else eos
        if not is_tie(checkpoint, found.ids, found.pixels, expected[:split], token):
            unexplained.append((question.prompt, found.answer, expected))
    subset = questions[: len(torch_answers)]
    here, there = (accuracy(checkpoint, subset, each)["overall"] for each in ([a.answer for a in asked], torch_answers))
    print(f"\n{runtime}: {same} of {len(asked)} answers equal torch's; accuracy {here:.4f}, torch {there:.4f}")
    assert len(torch_answers) == TORCH_QUESTIONS
    assert unexplained == []
    assert same >= MIN_AGREEMENT * len(asked)
    assert abs(here - there) <= 0.002


def test_accuracy(questions: list[Question], checkpoint: Checkpoint, runtime_answers: dict[str, list[Asked]]) -> None:
    """At least what the task asks for, and what the last cell of the card's row `overall` says."""
    here, there = (
        accuracy(checkpoint, questions, [asked.answer for asked in runtime_answers[runtime]]) for runtime in RUNTIMES
    )
    print("\n" + "\n".join(f"{kind:20} {share:.4f}" for kind, share in here.items()))
    assert here["overall"] >= MIN_ACCURACY
    assert abs(here["overall"] - there["overall"]) <= 0.002
    assert len(here) >= 1 + 5  # overall, and at least five kinds of question
    card = (EXAMPLE / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| **overall**"))
    assert row.split("|")[-2].strip() == f"{100 * here['overall']:.1f} %"


def test_size() -> None:
    assert (EXAMPLE / "model.pt").stat().st_size < MAX_SIZE
