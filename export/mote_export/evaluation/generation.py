"""Greedy answers in torch, several prompts at a time. Prompts of equal length go together, so that there is no padding: a batch
computes what its prompts would one by one, but for the order in which a larger matrix product sums."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin


def equal_rows(keys: Sequence[Hashable], batch_size: int) -> Iterator[list[int]]:
    """Rows whose keys are equal, at most `batch_size` at a time, in the order in which each key comes first."""
    rows_of: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows_of[key].append(row)
    for rows in rows_of.values():
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


@torch.inference_mode()
def greedy_ids(
    model: GenerationMixin,
    input_ids: Tensor,
    pixel_values: Tensor | None,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    suppress_tokens: Sequence[int] | None = None,
) -> list[list[int]]:
    """The likeliest token after each other, up to and without the first end token.

    Args:
        model: in eval mode.
        input_ids: int64 [n, length], all of one length.
        pixel_values: float [m, 3, height, width], the pictures in order of their image tokens; None without any.
        max_new_tokens: the greatest number of tokens of an answer.
        eos_token_ids: tokens that end an answer, at least one.
        suppress_tokens: tokens that are never chosen.
    """
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        **({} if pixel_values is None else {"pixel_values": pixel_values}),
        # All of it: a model may come with a penalty for repetition, which an export does not know.
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(eos_token_ids),
            pad_token_id=eos_token_ids[0],  # what follows an end token is cut off here
            suppress_tokens=None if suppress_tokens is None else list(suppress_tokens),
        ),
        use_model_defaults=False,
    )
    answers = []
    for tokens in generated[:, input_ids.shape[1] :].tolist():
        end = next((index for index, token in enumerate(tokens) if token in eos_token_ids), len(tokens))
        answers.append(tokens[:end])
    return answers
