"""L5: the demo model gives the same answers in torch, ONNX Runtime and ExecuTorch, right as often as its card says."""

import json
import sys
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
    answers: list[list[int]] = [[] for _ in questions]
    for batch in preprocessor.batches(questions):
        generated = checkpoint.model.generate(
            input_ids=batch.input_ids, attention_mask=torch.ones_like(batch.input_ids), pixel_values=batch.pixel_values,
            max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=eos, pad_token_id=eos,
        )  # fmt: skip
        for row, tokens in zip(batch.rows, generated[:, batch.input_ids.shape[1] :].tolist(), strict=True):
            answers[row] = tokens[: tokens.index(eos)] if eos in tokens else tokens
    return answers


def ask(pipeline: Pipeline, question: Question) -> tuple[list[int], np.ndarray, list[int]]:
    """Prompt ids, pixel values and the ids of the greedy answer."""
    ids = pipeline.tokenizer.encode_prompt(question.prompt, num_images=1)
    assert pipeline.manifest.image is not None
    pixels = preprocess_image(question.image, pipeline.manifest.image)[np.newaxis]
    return ids, pixels, pipeline.generate_ids(ids, pixels, MAX_NEW_TOKENS)


def is_tie(checkpoint: Checkpoint, ids: list[int], pixels: np.ndarray, common: list[int], token: int) -> bool:
    """Whether torch finds `token` as good as its own next token, after the part of the answer that both agree on."""
    with torch.no_grad():
        output = checkpoint.model(input_ids=torch.tensor([ids + common]), pixel_values=torch.from_numpy(pixels))
    logits = output.logits[0, -1].numpy()
    return bool(logits.max() - logits[token] <= tie_margin(logits, DEFAULT_RTOL))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_same_answers_as_torch(
    runtime: str,
    folder: Path,
    checkpoint: Checkpoint,
    questions: list[Question],
    torch_answers: list[list[int]],
) -> None:
    eos = load_eos(folder)
    replies, unexplained, same = [], [], 0
    with load(folder, runtime=runtime) as pipeline:
        for question, expected in zip(questions, torch_answers, strict=True):
            ids, pixels, found = ask(pipeline, question)
            replies.append(pipeline.tokenizer.decode(found))
            if found == expected:
                same += 1
                continue
            split = next(
                (i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
                min(len(found), len(expected)),
            )
            token = found[split] if split < len(found) else eos
            if not is_tie(checkpoint, ids, pixels, expected[:split], token):
                unexplained.append((question.prompt, found, expected))
        torch_replies = [pipeline.tokenizer.decode(tokens) for tokens in torch_answers]
    here, there = (accuracy_by_kind(questions, texts)["overall"] for texts in (replies, torch_replies))
    print(f"\n{runtime}: {same} of {len(questions)} answers equal torch's; accuracy {here:.4f}, torch {there:.4f}")
    assert unexplained == []
    assert same >= MIN_AGREEMENT * len(questions)
    assert abs(here - there) <= 0.002


def load_eos(folder: Path) -> int:
    return int(json.loads((folder / "onnx" / "mote.json").read_text())["model"]["eos_token_ids"][0])


def test_accuracy(questions: list[Question], checkpoint: Checkpoint, torch_answers: list[list[int]]) -> None:
    tokenizer = Preprocessor.from_files(dict(checkpoint.files)).tokenizer
    accuracy = accuracy_by_kind(questions, tokenizer.batch_decode(torch_answers))
    print("\n" + "\n".join(f"{kind:20} {share:.4f}" for kind, share in accuracy.items()))
    assert accuracy["overall"] >= MIN_ACCURACY
    assert len(accuracy) >= 1 + 5  # overall, and at least five kinds of question


def test_size() -> None:
    assert (EXAMPLE / "model.pt").stat().st_size < MAX_SIZE


def test_the_cards_accuracy_is_what_the_file_does(
    questions: list[Question], checkpoint: Checkpoint, torch_answers: list[list[int]]
) -> None:
    """The last cell of the card's row `overall`."""
    tokenizer = Preprocessor.from_files(dict(checkpoint.files)).tokenizer
    overall = accuracy_by_kind(questions, tokenizer.batch_decode(torch_answers))["overall"]
    card = (EXAMPLE / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| **overall**"))
    assert row.split("|")[-2].strip() == f"{100 * overall:.1f} %"
