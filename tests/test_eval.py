"""mote-eval: scores and intervals by hand-worked values, questions from hostile files, and the command on real models."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO_MODEL
from tiny import companion_files, dense_llava, tiny_checkpoint, tiny_text_config, write_dense
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from mote_export.checkpoint import Checkpoint, DenseCheckpoint, load_dense
from mote_export.cli.eval import main
from mote_export.evaluation import (
    Question,
    compare,
    evaluate,
    read_predictions,
    read_questions,
    score,
    wilson_interval,
    write_predictions,
)
from mote_export.evaluation.scoring import sign_test
from mote_export.evaluation.torch_model import TorchModel
from mote_runtime.errors import MoteError
from mote_runtime.manifest import ImageSpec
from mote_runtime.preprocess import preprocess_image

IMAGES = DEMO_MODEL.parent / "images"


@pytest.mark.parametrize(
    ("metric", "answer", "accepted", "expected"),
    [
        ("exact", " Top  left.\n", ["top left"], 1.0),
        ("exact", "top left", ["Top left."], 1.0),
        ("exact", "top", ["top left"], 0.0),
        ("exact", "8", ["9", "8"], 1.0),
        ("exact", "3.5", ["35"], 0.0),
        ("exact", "", ["8"], 0.0),
        ("contains", "It is a cat, I think.", ["cat"], 1.0),
        ("contains", "A category", ["cat"], 0.0),
        ("contains", "the top-left corner", ["Top left"], 1.0),
        ("contains", "", ["cat"], 0.0),
        ("contains", "1 + 2", ["+"], 1.0),
        ("contains", "1 - 2", ["+"], 0.0),
        ("vqa", "yes", ["yes"], 1.0),
        ("vqa", "yes", ["no"] * 10, 0.0),
        ("vqa", "yes", ["Yes."] * 4 + ["no"] * 6, 1.0),
        ("vqa", "yes", ["yes"] + ["no"] * 9, 0.3),  # known from VQA's papers
        ("vqa", "yes", ["yes"] * 2 + ["no"] * 8, 0.6),
        ("vqa", "yes", ["yes"] * 3 + ["no"] * 7, 0.9),
    ],
)
def test_score(metric: str, answer: str, accepted: list[str], expected: float) -> None:
    assert score(metric, answer, accepted) == pytest.approx(expected)


@pytest.mark.parametrize("agreeing", range(6))
def test_vqa_is_the_mean_over_all_that_leave_one_out(agreeing: int) -> None:
    accepted = ["yes"] * agreeing + ["no"] * (5 - agreeing)
    subsets = [min(subset.count("yes") / 3, 1.0) for subset in combinations(accepted, 4)]
    assert score("vqa", "yes", accepted) == pytest.approx(sum(subsets) / len(subsets))


def test_wilson_interval() -> None:
    """Against the roots of the quadratic that defines it, (p - share)^2 = z^2 p (1 - p) / n, and at the ends of its range."""
    low, high = wilson_interval(81, 263)  # the example of Newcombe (1998), his method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    for bound in (low, high):
        assert (bound - 81 / 263) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / 263)
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson_interval(10, 10) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))


def test_sign_test() -> None:
    for gained, lost in ((0, 0), (1, 0), (5, 1), (3, 3), (0, 9), (400, 300)):
        n, k = gained + lost, min(gained, lost)
        exact = min(1.0, 2 * sum(math.comb(n, each) for each in range(k + 1)) / 2**n)
        assert sign_test(gained, lost) == pytest.approx(exact, rel=1e-9)


def asked(count: int = 4) -> list[Question]:
    return [Question(f"{index}?", (str(index),), "even" if index % 2 == 0 else "odd") for index in range(count)]


def test_evaluate_counts_by_task() -> None:
    found = evaluate(lambda questions: ["0", "1", "wrong", "3"], asked())
    assert (found.overall.questions, found.overall.total, found.overall.mean) == (4, 3.0, 0.75)
    assert {task: (each.questions, each.total) for task, each in found.tasks.items()} == {"even": (2, 1), "odd": (2, 2)}
    assert found.to_json()["overall"] == {
        "questions": 4, "total": 3.0, "mean": 0.75,
        "low": pytest.approx(wilson_interval(3, 4)[0]), "high": pytest.approx(wilson_interval(3, 4)[1]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "questions", "metric", "sentence"),
    [
        (["0"], 2, "exact", "2 questions got 1 answers"),
        ([], 0, "exact", "no questions to ask"),
        (["0"], 1, "bleu", "metric 'bleu' is not known; expected one of exact, contains, vqa"),
    ],
)
def test_evaluate_refuses(answers: list[str], questions: int, metric: str, sentence: str) -> None:
    with pytest.raises(MoteError, match=sentence):
        evaluate(lambda _: answers, asked(questions), metric)


def test_predictions_are_compared_question_by_question(tmp_path: Path) -> None:
    same_twice = [*asked(), Question("0?", ("zero",), "even")]
    before = evaluate(lambda _: ["0", "?", "2", "?", "nil"], same_twice)
    write_predictions(tmp_path / "a.jsonl", before)
    after = evaluate(lambda _: ["0", "1", "no", "3", "zero", "new"], [*same_twice, Question("new?", ("new",))])
    found = compare(after, read_predictions(tmp_path / "a.jsonl"))
    assert found.unmatched == 1
    assert {task: (each.changed, each.gained, each.lost) for task, each in found.tasks.items()} == {
        "even": (2, 1, 1),
        "odd": (2, 2, 0),
    }
    assert (found.overall.before.total, found.overall.after.total, found.overall.gained) == (2.0, 4.0, 3)
    assert found.overall.p_value == sign_test(3, 1)
    # A file of predictions is a set of questions, too.
    again = read_questions(tmp_path / "a.jsonl").questions
    assert [(each.text, each.answers, each.task) for each in again] == [
        (each.text, each.answers, each.task) for each in same_twice
    ]
    with pytest.raises(MoteError, match="of other questions"):
        compare(evaluate(lambda _: ["new"], [Question("new?", ("new",))]), read_predictions(tmp_path / "a.jsonl"))


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_three_forms(tmp_path: Path) -> None:
    plain = {"image": "scene-0.png", "question": "What?", "answer": ["8", "eight"], "task": "read"}
    llava = {
        "id": "x",
        "image": "scene-1.png",
        "conversations": [
            {"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "2"},
            {"from": "human", "value": "Sum?"}, {"from": "gpt", "value": "7"},
        ],
    }  # fmt: skip
    several = {"image": "scene-2.png", "questions": [{"kind": "where", "question": "Where?", "answer": "here"}]}
    path = write(tmp_path / "data.json", [plain, llava, several, {"question": "Text?", "answer": "yes"}])
    expected = (
        Question("What?", ("8", "eight"), "read", IMAGES / "scene-0.png", "scene-0.png"),
        Question("How many?", ("2",), "questions", IMAGES / "scene-1.png", "scene-1.png"),
        Question("Sum?", ("7",), "questions", IMAGES / "scene-1.png", "scene-1.png"),
        Question("Where?", ("here",), "where", IMAGES / "scene-2.png", "scene-2.png"),
        Question("Text?", ("yes",), "questions"),
    )
    assert read_questions(path, IMAGES).questions == expected
    lines = "\n\n".join(map(json.dumps, (plain, llava, several)))
    assert read_questions(write(tmp_path / "data.jsonl", lines), IMAGES).questions == expected[:4]
    assert read_questions(path, IMAGES, limit=2).questions == expected[:2]
    own = read_questions(IMAGES / "questions.json").questions
    assert len(own) == 66
    assert own[0] == Question(
        "Read the digit at the bottom left.", ("9",), "read", IMAGES / "scene-0.png", "scene-0.png"
    )


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in pairs]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not a readable JSON document"),
        ("[NaN]", "NaN is no JSON number"),
        ("[" * 100_000, "is not a readable JSON document"),
        ({}, "expected a list of at most"),
        ([], "has no questions"),
        (["text"], "entry 0 is 'text'; expected a JSON object"),
        ([{"answer": "a"}], "entry 0: field 'question' is missing"),
        ([{"question": "q"}], "entry 0: field 'answer' is missing; expected a string or a list of 1 to 1000 strings"),
        ([{"question": "q", "answer": []}], "field 'answer'"),
        ([{"question": "q", "answer": ["a", 3]}], "field 'answer'"),
        ([{"question": "q", "answer": "a", "task": 3}], "field 'task' is 3"),
        ([{"question": "q", "answer": "a", "image": ""}], "field 'image' is ''; expected a path of a picture within"),
        ([{"question": "q", "answer": "a", "image": "/etc/passwd"}], "within the image folder"),
        ([{"question": "q", "answer": "a", "image": "a/../../b.png"}], "within the image folder"),
        ([{"question": "q", "answer": "a", "image": ["a.png"]}], "field 'image' is"),
        ([{"questions": [1]}], "entry 0: question 0 is 1"),
        ([{"question": "q\ud83d", "answer": "a"}], "field 'question' is 'q\\ud83d'; expected valid Unicode"),
        ([{"question": "q", "answer": "\ud83d"}], "field 'answer'"),
        ([{"question": "q", "answer": "a", "task": "\ud83d"}], "field 'task'"),
        ([{"question": "q", "answer": "a", "image": "a\\..\\b.png"}], "within the image folder"),
        ([turns(("human", "q"))], "an even number of turns"),
        ([turns(("gpt", "q"), ("human", "a"))], "turn 0: field 'from' is 'gpt'; expected 'human' or 'user'"),
        ([turns(("human", "q"), ("gpt", None))], "turn 1: field 'value' is None"),
    ],
)
def test_what_is_no_set_of_questions_is_a_sentence(content: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(MoteError) as caught:
        read_questions(write(tmp_path / "data.json", content))
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 400


def test_pictures_that_cannot_be_read_are_counted_or_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes((IMAGES / "scene-0.png").read_bytes()[:100])
    names = ["broken.png", "absent.png", "a\ud800.png", "x" * 900, "broken.png"]
    entries: list[dict[str, Any]] = [{"image": name, "question": "q", "answer": "a"} for name in names]
    path = write(tmp_path / "data.json", [*entries, {"question": "text", "answer": "a"}])
    found = read_questions(path)
    assert (len(found.questions), found.skipped) == (1, 5)
    assert "broken.png" in str(found.reason)
    with pytest.raises(MoteError, match=r"broken\.png"):
        read_questions(path, strict=True)
    with pytest.raises(MoteError, match=r"no question of .* has a picture that can be read"):
        read_questions(write(path, entries))
    with pytest.raises(MoteError, match=r"image folder .* does not exist"):
        read_questions(path, tmp_path / "absent")


# --- models ---


def tiny_questions() -> list[Question]:
    noise = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    return [
        Question("ab?", ("a",), image=noise[0]),
        Question("cd?", ("a",), image=noise[1]),
        Question("longer?", ("a",), image=noise[1]),
        Question("0123456789abcdef" + "?" * 27, ("a",)),  # as long as "cd?" with its picture
        Question("cd?", ("a",)),
    ]


def one_by_one(checkpoint: Checkpoint | DenseCheckpoint, questions: list[Question], tokens: int) -> list[str]:
    """Without anything of the evaluation: Qwen2's prompt by hand, the likeliest token after each other."""
    tokenizer = Tokenizer.from_str(checkpoint.files["tokenizer.json"])
    pad, ends = tokenizer.token_to_id("<|image_pad|>"), {tokenizer.token_to_id("<|im_end|>"), 256}
    spec = ImageSpec(32, 32, "bicubic", 1 / 255, (0.5,) * 3, (0.5,) * 3)
    found = []
    for question in questions:
        has_image = question.image is not None
        shown = "<|vision_start|>" + "<|image_pad|>" * 16 + "<|vision_end|>" if has_image else ""
        ids = tokenizer.encode(f"<|im_start|>user\n{shown}{question.text}<|im_end|>\n<|im_start|>assistant\n").ids
        images = {"pixel_values": torch.from_numpy(preprocess_image(question.image, spec))[None]} if has_image else {}
        start = len(ids)
        with torch.no_grad():
            for _ in range(tokens):
                logits = checkpoint.model(input_ids=torch.tensor([ids]), **images).logits[0, -1]
                logits[pad] = -math.inf
                if int(logits.argmax()) in ends:
                    break
                ids.append(int(logits.argmax()))
        found.append(tokenizer.decode(ids[start:]))
    return found


def dense_checkpoint() -> DenseCheckpoint:
    model = dense_llava().eval()
    with torch.no_grad():  # louder than at the start of a training, or every answer repeats the prompt's last token
        for name, parameter in model.named_parameters():
            if "mlp." in name or "projector" in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return DenseCheckpoint("dense", model, companion_files(32))


@pytest.mark.parametrize("make", [tiny_checkpoint, dense_checkpoint])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_torch_answers_are_greedy(make: Callable[[], Checkpoint | DenseCheckpoint], batch_size: int) -> None:
    checkpoint, questions = make(), tiny_questions()
    checkpoint.model.generation_config.repetition_penalty = 9.0  # which no export knows
    answers = TorchModel(checkpoint, max_new_tokens=5, batch_size=batch_size).answers(questions)
    assert answers == one_by_one(checkpoint, questions, 5)
    assert len(set(answers)) > 1


def test_a_dense_text_model_answers_and_takes_no_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_dense(tmp_path, AutoModelForCausalLM.from_config(tiny_text_config(LlamaConfig)))
    model = TorchModel.load(tmp_path, max_new_tokens=5)
    questions = tiny_questions()[3:]
    assert model.answers(questions) == one_by_one(load_dense(tmp_path), questions, 5)
    with pytest.raises(MoteError, match="text only"):
        model.answers(tiny_questions())
    with pytest.raises(MoteError, match=r"is \d+ tokens long; the model's context holds 128"):
        model.answers([Question("x" * 200, ("a",))])
    with pytest.raises(MoteError, match="device 'abacus' cannot be used"):
        TorchModel.load(tmp_path, "abacus")


# --- the command ---

QUESTIONS = IMAGES / "questions.json"


@pytest.fixture(scope="module")
def predictions(demo_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ONNX Runtime, by a process that has no torch."""
    path = tmp_path_factory.mktemp("predictions") / "onnx.jsonl"
    code = (
        "import sys; sys.modules['torch'] = None; from mote_export.cli.eval import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, demo_export, QUESTIONS, "--predictions", path, "--json", "--threads", "1"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["runtime"], found["skipped"], found["overall"]["questions"]) == ("onnxruntime", 0, 66)
    assert len(found["tasks"]) == 9
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(row["score"] for row in rows) == found["overall"]["total"] >= 0.8 * 66
    assert all(row["score"] == float(row["prediction"] in row["answer"]) for row in rows)
    return path


@pytest.mark.parametrize("model", ["torch", "executorch"])
def test_all_of_them_answer_the_same(
    model: str, demo_export: Path, predictions: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [str(DEMO_MODEL)] if model == "torch" else [str(demo_export), "--runtime", "executorch"]
    assert main([*options, str(QUESTIONS), "--against", str(predictions), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["runtime"] == model
    overall = found["against"]["overall"]
    assert overall["before"]["questions"] == 66
    assert (overall["changed"], overall["difference"], found["against"]["unmatched"]) == (0, 0.0, 0)


def test_the_tables(demo_export: Path, predictions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of three questions: one skipped, one right, one that another model had right, before."""
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    shutil.copyfile(IMAGES / "scene-0.png", tmp_path / "a.png")
    entries = [
        {"image": name, "question": "How many digits do you see?", "answer": answer, "task": f"[b]{answer}"}
        for name, answer in (("a.png", "2"), ("a.png", "3"), ("broken.png", "2"))
    ]
    data = str(write(tmp_path / "data.json", entries))
    earlier = [{**entry, "prediction": "3"} for entry in entries[:2]]
    other = write(tmp_path / "other.jsonl", "\n".join(map(json.dumps, earlier)))
    assert main([str(demo_export), data, "--against", str(other)]) == 0
    captured = capfd.readouterr()
    rows = {cells[0]: cells[1:] for cells in table_cells(captured.out) if len(cells) == 4}
    assert rows == {
        "[b]2": ["1", "100.0%", "20.7% - 100.0%"], "[b]3": ["1", "0.0%", "0.0% - 79.3%"],
        "overall": ["2", "50.0%", "9.5% - 90.5%"],
    }  # fmt: skip
    flips = {cells[0]: cells[1:] for cells in table_cells(captured.out) if len(cells) == 8}
    assert flips == {
        "[b]2": ["0.0%", "100.0%", "+100.0", "1", "1", "0", "1"], "[b]3": ["100.0%", "0.0%", "-100.0", "1", "0", "1", "1"],
        "overall": ["50.0%", "50.0%", "+0.0", "2", "1", "1", "1"],
    }  # fmt: skip
    assert "1 questions are skipped" in captured.err
    assert "broken.png" in captured.err
    assert main([str(demo_export), data, "--strict"]) == 1
    captured = capfd.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "broken.png" in captured.err


def table_cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def test_what_cannot_be_evaluated_is_a_sentence(
    demo_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    bad = write(tmp_path / "bad.jsonl", "{}\n")
    long = write(tmp_path / "long.jsonl", json.dumps({"question": "how " * 999, "answer": "so"}))
    others = write(tmp_path / "others.jsonl", '{"question": "q", "prediction": "p"}')
    here, data = str(demo_export), str(QUESTIONS)
    for arguments, sentence in (
        ([str(DEMO_MODEL), data, "--runtime", "executorch"], "is no export, so --runtime executorch cannot run it"),
        ([str(demo_export / "onnx"), data, "--runtime", "executorch"], "was exported for onnxruntime"),
        ([str(tmp_path / "absent"), data], "does not exist"),
        ([str(empty), data], "config.json"),
        ([here, str(tmp_path / "absent.json")], "does not exist"),
        ([here, data, "--against", str(bad)], "line 1: field 'question' is missing"),
        ([here, data, "--against", str(tmp_path / "absent.jsonl")], "does not exist"),
        ([here, data, "--against", str(others)], "of other questions"),
        ([here, str(long)], "tokens long; the model's context holds"),
        ([here, data, "--predictions", str(empty)], "cannot be written"),
        ([here, data, "--predictions", str(tmp_path / "absent" / "file")], "cannot be written"),
    ):
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("mote-eval: ")
        assert sentence in captured.err
        assert captured.err.count("\n") == 1
    for arguments in (
        [here],
        [here, data, "--limit", "0"],
        [here, data, "--metric", "bleu"],
        [here, data, "--threads", "9999"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mote_export.cli.eval.evaluate", interrupt)
    assert main([here, data, "--predictions", str(tmp_path / "p.jsonl")]) == 130
    assert not (tmp_path / "p.jsonl").exists()


# --- the digit scenes as files ---


def test_the_digit_scenes_as_files(tmp_path: Path) -> None:
    code = [str(DEMO_MODEL.parent / "write_dataset.py"), "-o", "digits", "--scenes", "4", "--questions-per-scene", "2"]
    command = [sys.executable, *code, "--held-out", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{Path('digits/train.json')}: 8 questions about 4 scenes"
    training, testing = (
        read_questions(tmp_path / "digits" / f"{name}.json", strict=True) for name in ("train", "test")
    )
    assert len({each.image_name for each in training.questions}) == 4
    assert [each.task for each in testing.questions] == ["read", "count", "sum"]
    assert not any("<image>" in each.text for each in training.questions)
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "no empty folder" in again.stderr
