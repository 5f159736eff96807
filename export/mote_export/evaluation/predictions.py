"""What a model answered, as JSON lines that are questions with their right answers, too."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from mote_export.atomic import atomic_path
from mote_export.evaluation.questions import MAX_TEXT, read_json_lines
from mote_export.evaluation.results import Evaluation, Question
from mote_runtime.profile.strict import Fields

# The picture's name, the question, and how many of the same came before it.
Key: TypeAlias = tuple[str | None, str, int]


def write_predictions(path: str | Path, evaluation: Evaluation) -> None:
    """A line for each question: image, task, question, answer (those accepted), prediction and score. Complete or not at all."""
    with atomic_path(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
        for asked, answer, value in zip(evaluation.questions, evaluation.answers, evaluation.scores, strict=True):
            line = {
                "image": asked.image_name,
                "task": asked.task,
                "question": asked.text,
                "answer": asked.answers,
                "prediction": answer,
                "score": value,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_predictions(path: str | Path) -> Mapping[Key, str]:
    """The predictions of a file of `write_predictions`, by question. Raises MoteError."""
    rows = []
    for number, document in read_json_lines(Path(path)):
        fields = Fields(document, f"{path}: line {number}")
        image, question = fields.optional_text("image"), fields.text("question", MAX_TEXT)
        rows.append((image, question, fields.text("prediction", MAX_TEXT)))
    keys = question_keys((image, question) for image, question, _ in rows)
    return {key: prediction for key, (_, _, prediction) in zip(keys, rows, strict=True)}


def key_of(questions: Iterable[Question]) -> list[Key]:
    """Keys of questions, in their order."""
    return question_keys((question.image_name, question.text) for question in questions)


def question_keys(asked: Iterable[tuple[str | None, str]]) -> list[Key]:
    """A set may ask the same twice; the first is then compared with the first, the second with the second."""
    seen: dict[tuple[str | None, str], int] = defaultdict(int)
    keys: list[Key] = []
    for image, question in asked:
        keys.append((image, question, seen[image, question]))
        seen[image, question] += 1
    return keys
