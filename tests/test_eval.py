"""mote-eval: scores and intervals by hand-worked values, questions from hostile files, and the command on real models."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO_MODEL

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
from mote_runtime.errors import MoteError

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
