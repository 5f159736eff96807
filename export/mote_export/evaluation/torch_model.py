"""A checkpoint in torch that answers questions: MoTE's own, or the dense model before up-cycling."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from tqdm import tqdm

from mote_export.checkpoint import Checkpoint, DenseCheckpoint, load_any
from mote_export.evaluation.dense import as_described
from mote_export.evaluation.generation import equal_rows, greedy_ids
from mote_export.evaluation.prompts import encode_prompts
from mote_export.evaluation.results import Question
from mote_export.manifest import image_spec, model_spec
from mote_export.tokens import prompt_spec
from mote_runtime.errors import ImageError, MoteError
from mote_runtime.pipeline import DEFAULT_MAX_NEW_TOKENS
from mote_runtime.preprocess import preprocess_image
from mote_runtime.tokenizer import PromptTokenizer

DEFAULT_BATCH_SIZE = 64


class TorchModel:
    """Answers as an export would: the same prompts, pixels, end tokens and limits, from the checkpoint's own files."""

    def __init__(
        self,
        checkpoint: Checkpoint | DenseCheckpoint,
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        batch_size: int = DEFAULT_BATCH_SIZE,
        progress: bool = False,
    ) -> None:
        """Takes the model as it is, on its device and in its dtype, and puts it in eval mode.

        Args:
            checkpoint: MoTE's or dense, with the files of tokenizer and, for pictures, of the image processor.
            max_new_tokens: the greatest length of an answer.
            batch_size: questions at a time.
            progress: show a bar on stderr, where that is a terminal.

        Raises:
            MoteError: the tokenizer or the image processor is not one that mote exports.
        """
        self._model = checkpoint.model.eval()
        self._max_new_tokens = max_new_tokens
        self._batch_size = batch_size
        self._progress = progress
        described = as_described(checkpoint)
        self._spec = model_spec(described, described.model.config.text_config.max_position_embeddings)
        self._image = image_spec(described)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            path.write_text(checkpoint.files[path.name], encoding="utf-8")
            self._tokenizer = PromptTokenizer(path, self._spec, prompt_spec(described))

    @property
    def name(self) -> str:
        """The checkpoint's, for people."""
        return self._spec.name

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        batch_size: int = DEFAULT_BATCH_SIZE,
        progress: bool = False,
    ) -> Self:
        """Loads a MoTE checkpoint of any format, or a dense folder of `save_pretrained`; raises MoteError."""
        checkpoint = load_any(Path(path))
        try:
            checkpoint.model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise MoteError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
        return cls(checkpoint, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)

    def answers(self, questions: Sequence[Question]) -> list[str]:
        """A greedy answer to each question.

        Raises:
            MoteError: a question that is longer than the context; ImageError for a picture that cannot be read, or one for a
                model that takes none.
        """
        prompts = encode_prompts(self._tokenizer, self._spec, questions)
        keys = [(len(prompt), each.image is None) for prompt, each in zip(prompts, questions, strict=True)]
        texts = [""] * len(questions)
        # None for `disable` asks whether stderr is a terminal.
        with tqdm(
            total=len(questions), desc="questions", unit="question", disable=None if self._progress else True
        ) as bar:
            for rows in equal_rows(keys, self._batch_size):
                replies = self._greedy([prompts[row] for row in rows], [questions[row] for row in rows])
                for row, ids in zip(rows, replies, strict=True):
                    texts[row] = self._tokenizer.decode(ids)
                bar.update(len(rows))
        return texts

    def _greedy(self, prompts: Sequence[Sequence[int]], questions: Sequence[Question]) -> list[list[int]]:
        """Of prompts of equal length, all with a picture or all without."""
        device, image_token_id = self._model.device, self._spec.image_token_id
        room = self._spec.context_length - len(prompts[0]) + 1  # the last token is never read
        return greedy_ids(
            self._model,
            torch.tensor(list(prompts), device=device),
            self._pixel_values(questions),
            min(self._max_new_tokens, room),
            self._spec.eos_token_ids,
            None if image_token_id is None else [image_token_id],
        )

    def _pixel_values(self, questions: Sequence[Question]) -> torch.Tensor | None:
        images = [question.image for question in questions if question.image is not None]
        if not images:
            return None
        if self._image is None:
            raise ImageError(f"model {self._spec.name!r} is text only; ask it questions without pictures")
        pixels = np.stack([preprocess_image(image, self._image) for image in images])
        return torch.from_numpy(pixels).to(self._model.device, self._model.dtype)
