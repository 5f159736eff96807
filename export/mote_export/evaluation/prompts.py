"""Questions as the tokens of their prompts, all of them before the first is asked."""

from collections.abc import Sequence

from mote_export.evaluation.results import Question
from mote_runtime.errors import MoteError
from mote_runtime.manifest import ModelSpec
from mote_runtime.tokenizer import PromptTokenizer


def encode_prompts(tokenizer: PromptTokenizer, model: ModelSpec, questions: Sequence[Question]) -> list[list[int]]:
    """Token ids of each question's prompt.

    Raises:
        MoteError: one is longer than the context; ImageError for a picture and a model that takes none.
    """
    prompts = [tokenizer.encode_prompt(each.text, int(each.image is not None)) for each in questions]
    for question, prompt in zip(questions, prompts, strict=True):
        if len(prompt) > model.context_length:
            raise MoteError(
                f"the question {question.text[:40]!r} is {len(prompt)} tokens long; the model's context holds "
                f"{model.context_length}: leave the question out"
            )
    return prompts
