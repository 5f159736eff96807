"""How often a model is right, by task: questions with their answers from files, asked in torch or in either runtime.

Nothing here imports torch but `torch_model`, so that an export is evaluated where there is none.

>>> from mote_export.evaluation import evaluate, read_questions
>>> from mote_export.evaluation.runtime_model import RuntimeModel
>>> with RuntimeModel.load("exported") as model:
...     print(evaluate(model.answers, read_questions("questions.json").questions).overall.mean)
"""

from mote_export.evaluation.compare import Comparison, check_comparable, compare
from mote_export.evaluation.predictions import read_predictions, write_predictions
from mote_export.evaluation.questions import QuestionSet, read_questions
from mote_export.evaluation.results import AnswerFunction, Evaluation, Question, Score, evaluate
from mote_export.evaluation.scoring import METRICS, normalise, score, wilson_interval

__all__ = [
    "METRICS",
    "AnswerFunction",
    "Comparison",
    "Evaluation",
    "Question",
    "QuestionSet",
    "Score",
    "check_comparable",
    "compare",
    "evaluate",
    "normalise",
    "read_predictions",
    "read_questions",
    "score",
    "wilson_interval",
    "write_predictions",
]
