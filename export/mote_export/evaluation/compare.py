"""Two models on the same questions: how the accuracy differs, and how many answers flipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mote_export.evaluation.predictions import Key, key_of
from mote_export.evaluation.results import Evaluation, Question, Score
from mote_export.evaluation.scoring import normalise, score, sign_test
from mote_runtime.errors import MoteError


@dataclass(frozen=True)
class Difference:
    """What changed from one model to another, on the questions that both were asked.

    Attributes:
        before, after: the scores of each.
        changed: answers that are others, after normalisation.
        gained, lost: answers whose score rose, and fell.
    """

    before: Score
    after: Score
    changed: int
    gained: int
    lost: int

    @property
    def p_value(self) -> float:
        """How probable so uneven gains and losses are where neither is better; see `sign_test`."""
        return sign_test(self.gained, self.lost)

    def to_json(self) -> dict[str, object]:
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "difference": self.after.mean - self.before.mean,
            "changed": self.changed,
            "gained": self.gained,
            "lost": self.lost,
            "p_value": self.p_value,
        }


@dataclass(frozen=True)
class Comparison:
    """One model after another.

    Attributes:
        overall: over all questions that both were asked.
        tasks: by task.
        unmatched: questions of the evaluation that the predictions do not have.
    """

    overall: Difference
    tasks: Mapping[str, Difference]
    unmatched: int

    def to_json(self) -> dict[str, object]:
        return {
            "overall": self.overall.to_json(),
            "tasks": {task: found.to_json() for task, found in self.tasks.items()},
            "unmatched": self.unmatched,
        }


def check_comparable(questions: Sequence[Question], predictions: Mapping[Key, str]) -> None:
    """Raises MoteError where `compare` would, before anything is asked."""
    if predictions.keys().isdisjoint(key_of(questions)):
        raise MoteError("the predictions to compare with are of other questions; expected some of the same")


def compare(evaluation: Evaluation, predictions: Mapping[Key, str]) -> Comparison:
    """The evaluation against earlier predictions, which are scored anew by the evaluation's metric and right answers.

    Args:
        evaluation: the later one.
        predictions: of `read_predictions`.

    Raises:
        MoteError: they have no question in common.
    """
    check_comparable(evaluation.questions, predictions)
    pairs: dict[str, list[_Pair]] = {}
    unmatched = 0
    rows = zip(evaluation.questions, key_of(evaluation.questions), evaluation.answers, evaluation.scores, strict=True)
    for question, key, answer, after in rows:
        if key not in predictions:
            unmatched += 1
            continue
        earlier = predictions[key]
        before = score(evaluation.metric, earlier, question.answers)
        changed = normalise(earlier) != normalise(answer)
        pairs.setdefault(question.task, []).append(_Pair(before, after, changed))
    everything = [pair for each in pairs.values() for pair in each]
    return Comparison(_difference(everything), {task: _difference(each) for task, each in pairs.items()}, unmatched)


@dataclass(frozen=True)
class _Pair:
    before: float
    after: float
    changed: bool


def _difference(pairs: list[_Pair]) -> Difference:
    return Difference(
        before=Score.of([pair.before for pair in pairs]),
        after=Score.of([pair.after for pair in pairs]),
        changed=sum(pair.changed for pair in pairs),
        gained=sum(pair.after > pair.before for pair in pairs),
        lost=sum(pair.after < pair.before for pair in pairs),
    )
