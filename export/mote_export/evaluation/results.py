"""Questions, what was answered, and how right that was: by task and overall."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mote_export.evaluation.scoring import DEFAULT_METRIC, METRICS, score, wilson_interval
from mote_runtime.errors import MoteError
from mote_runtime.preprocess import ImageSource

NO_TASK = "questions"  # the task of questions that name none


@dataclass(frozen=True)
class Question:
    """A question with the answers that are right.

    Attributes:
        text: as a user types it, without a template or special tokens.
        answers: those accepted, at least one; the first is shown.
        task: what it is counted under.
        image: a path, the bytes of a file, a PIL image, uint8 [height, width, 3], or None for a question without a picture.
        image_name: of the picture, in files of predictions; None without one.
    """

    text: str
    answers: tuple[str, ...]
    task: str = NO_TASK
    image: ImageSource | None = None
    image_name: str | None = None


# One answer for each question, in their order.
AnswerFunction: TypeAlias = Callable[[Sequence[Question]], Sequence[str]]


@dataclass(frozen=True)
class Score:
    """How right the answers to some questions are.

    Attributes:
        questions: how many, at least 1.
        total: the sum of their scores; with metric "exact" the number of right answers.
    """

    questions: int
    total: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Score":
        return cls(len(scores), sum(scores))

    @property
    def mean(self) -> float:
        """The accuracy, from 0 to 1."""
        return self.total / self.questions

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean; see `wilson_interval`."""
        return wilson_interval(self.total, self.questions)

    def to_json(self) -> dict[str, float | int]:
        low, high = self.interval
        return {"questions": self.questions, "total": self.total, "mean": self.mean, "low": low, "high": high}


@dataclass(frozen=True)
class Evaluation:
    """Answers to questions, with a score each.

    Attributes:
        questions: those that were asked, at least one.
        answers: the model's, one for each question.
        scores: from 0 to 1, one for each question.
        metric: how they were scored; see `mote_export.evaluation.scoring.score`.
    """

    questions: tuple[Question, ...]
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    metric: str

    @property
    def overall(self) -> Score:
        """Over all questions, each counted once whatever its task."""
        return Score.of(self.scores)

    @property
    def tasks(self) -> dict[str, Score]:
        """By task, in the order in which the tasks come first."""
        by_task: dict[str, list[float]] = {}
        for question, value in zip(self.questions, self.scores, strict=True):
            by_task.setdefault(question.task, []).append(value)
        return {task: Score.of(values) for task, values in by_task.items()}

    def to_json(self) -> dict[str, object]:
        """The figures without the answers, for `json.dump`."""
        return {
            "metric": self.metric,
            "overall": self.overall.to_json(),
            "tasks": {task: found.to_json() for task, found in self.tasks.items()},
        }


def evaluate(answer: AnswerFunction, questions: Sequence[Question], metric: str = DEFAULT_METRIC) -> Evaluation:
    """Asks all questions and scores the answers.

    Args:
        answer: gives an answer for each question, in their order: `TorchModel.answers`, `RuntimeModel.answers` or your own.
        questions: at least one.
        metric: "exact", "contains" or "vqa".

    Raises:
        MoteError: no questions, an unknown metric, or another number of answers than questions.
    """
    if metric not in METRICS:
        raise MoteError(f"metric {metric!r} is not known; expected one of {', '.join(METRICS)}")
    if not questions:
        raise MoteError("there are no questions to ask; expected at least one")
    answers = tuple(answer(questions))
    if len(answers) != len(questions):
        raise MoteError(f"{len(questions)} questions got {len(answers)} answers; expected one for each")
    scores = tuple(score(metric, found, asked.answers) for asked, found in zip(questions, answers, strict=True))
    return Evaluation(tuple(questions), answers, scores, metric)
