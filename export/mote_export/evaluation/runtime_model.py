"""An export that answers questions in its own runtime, without torch."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from mote_export.evaluation.prompts import encode_prompts
from mote_export.evaluation.results import Question
from mote_runtime.pipeline import DEFAULT_MAX_NEW_TOKENS, Pipeline, load


class RuntimeModel:
    """Asks a pipeline one question after another. Use it in a `with` statement, or close the pipeline yourself."""

    def __init__(
        self, pipeline: Pipeline, *, max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS, progress: bool = False
    ) -> None:
        """`progress` shows a bar on stderr, where that is a terminal."""
        self.pipeline = pipeline
        self._max_new_tokens = max_new_tokens
        self._progress = progress

    @classmethod
    def load(
        cls,
        folder: str | Path,
        runtime: str | None = None,
        threads: int | None = None,
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        progress: bool = False,
    ) -> Self:
        """Loads what mote-export wrote; arguments and errors are those of `mote_runtime.load`."""
        return cls(load(folder, runtime, threads), max_new_tokens=max_new_tokens, progress=progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.pipeline.close()

    def answers(self, questions: Sequence[Question]) -> list[str]:
        """A greedy answer to each question. Raises MoteError, as `Pipeline.answer` does, of a prompt before anything is asked."""
        encode_prompts(self.pipeline.tokenizer, self.pipeline.manifest.model, questions)
        # None for `disable` asks whether stderr is a terminal.
        shown = tqdm(questions, desc="questions", unit="question", disable=None if self._progress else True)
        return [self.pipeline.answer(each.image, each.text, self._max_new_tokens).text for each in shown]
