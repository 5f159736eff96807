"""Held-out questions for the demo model, and its accuracy on them.

python examples/digits_vqa/evaluate.py [model.pt] [--questions N] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from held_out import DEFAULT_QUESTIONS, Question, held_out_questions
from mote_export.checkpoint.pt import load_model_pt
from mote_export.evaluation.generation import equal_rows, greedy_ids
from mote_export.model import MoteForConditionalGeneration

FOLDER = Path(__file__).parent
MAX_NEW_TOKENS = 32  # the longest answer, the description of four digits, takes 24
_BATCH = 300


@dataclass(frozen=True)
class _Batch:
    rows: list[int]  # of the list of questions
    input_ids: torch.Tensor
    pixel_values: torch.Tensor


@dataclass(frozen=True)
class Preprocessor:
    """The tokenizer and the image processor that travel inside model.pt."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor

    @classmethod
    def from_files(cls, files: dict[str, str]) -> Preprocessor:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            return cls(
                AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder, use_fast=False)
            )

    def batches(self, questions: Sequence[Question]) -> Iterator[_Batch]:
        """Questions of equal length together: no padding, so a batch computes what single questions would."""
        ids = [self.tokenizer(question.full_prompt).input_ids for question in questions]
        for rows in equal_rows([len(tokens) for tokens in ids], _BATCH):
            pixels = self.image_processor([questions[row].image for row in rows], return_tensors="pt").pixel_values
            yield _Batch(rows, torch.tensor([ids[row] for row in rows]), pixels)


def answers(
    model: LlavaForConditionalGeneration, preprocessor: Preprocessor, questions: Sequence[Question]
) -> list[str]:
    """The model's answer to every question, by greedy decoding."""
    model.eval()
    texts = [""] * len(questions)
    for batch in preprocessor.batches(questions):
        eos = preprocessor.tokenizer.eos_token_id
        generated = greedy_ids(model, batch.input_ids, batch.pixel_values, MAX_NEW_TOKENS, [eos])
        replies = preprocessor.tokenizer.batch_decode(generated, skip_special_tokens=True)
        for row, reply in zip(batch.rows, replies, strict=True):
            texts[row] = reply
    return texts


def accuracy_by_kind(questions: Sequence[Question], replies: Sequence[str]) -> dict[str, float]:
    """Share of exactly right answers, "overall" first, then per kind."""
    right: dict[str, list[bool]] = {"overall": []}
    for question, reply in zip(questions, replies, strict=True):
        right["overall"].append(reply == question.answer)
        right.setdefault(question.kind, []).append(reply == question.answer)
    return {kind: sum(values) / len(values) for kind, values in right.items()}


@torch.inference_mode()
def router_load(
    model: MoteForConditionalGeneration, preprocessor: Preprocessor, questions: Sequence[Question]
) -> list[list[float]]:
    """Share of prompt tokens (image tokens included) that each expert receives, per MoTE layer."""
    model.eval()
    layers = model.mote_layers()
    counts = [torch.zeros(layer.settings.num_experts) for layer in layers]
    for batch in preprocessor.batches(questions):
        model(input_ids=batch.input_ids, pixel_values=batch.pixel_values)
        for total, layer in zip(counts, layers, strict=True):
            assert layer.expert_counts is not None
            total += layer.expert_counts
    return [[round(share, 4) for share in (total / total.sum()).tolist()] for total in counts]


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy of the demo model on held-out questions.")
    parser.add_argument("model", type=Path, nargs="?", default=FOLDER / "model.pt")
    parser.add_argument("--questions", type=int, default=DEFAULT_QUESTIONS, help="how many (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    checkpoint = load_model_pt(arguments.model)
    preprocessor = Preprocessor.from_files(dict(checkpoint.files))
    questions = held_out_questions(arguments.questions)
    accuracy = accuracy_by_kind(questions, answers(checkpoint.model, preprocessor, questions))
    load = router_load(checkpoint.model, preprocessor, questions)
    if arguments.json:
        print(json.dumps({"questions": len(questions), "accuracy": accuracy, "router_load": load}, indent=2))
        return 0
    print(f"{len(questions)} held-out questions")
    for kind, share in accuracy.items():
        print(f"{kind:<18} {100 * share:6.2f} %")
    for index, shares in enumerate(load):
        print(f"router load, MoTE layer {index}: " + "  ".join(f"{100 * share:5.1f} %" for share in shares))
    return 0


if __name__ == "__main__":
    sys.exit(main())
