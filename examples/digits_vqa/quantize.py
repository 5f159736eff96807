"""What each way to store the demo model's parts costs in its weights and in its answers, in torch.

python examples/digits_vqa/quantize.py [model.pt] [--questions N] [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluate import FOLDER, Preprocessor, accuracy_by_kind, answers
from held_out import Question, held_out_questions
from mote_export.checkpoint.pt import load_model_pt
from mote_export.model import MoteModel
from mote_export.quantize import METHODS, QuantizeOptions, WeightFormat, quantize_model_

PARTS = {
    "shared experts": ("shared_experts",),
    "linear layers": ("attention", "projector", "lm_head"),
    "embedding": ("embedding",),
}
# Bits and group size, which 8 bits have none of.
FORMATS = ((8, None), (4, 128), (4, 32), (3, 32))


def rows(model: MoteModel, preprocessor: Preprocessor, questions: list[Question]) -> list[dict[str, Any]]:
    """One for the checkpoint as it is, then one for each part, format and method."""
    accuracy = accuracy_by_kind(questions, answers(model, preprocessor, questions))["overall"]  # type: ignore[arg-type]
    result = [
        {"part": "none", "format": "as it is", "method": "", "bytes": None, "rounding": 0.0, "accuracy": accuracy}
    ]
    cases = [(part, form, method) for part in PARTS for form in FORMATS for method in METHODS]
    for part, (bits, group), method in tqdm(cases, disable=None):
        rounded = copy.deepcopy(model)
        form = WeightFormat(bits, method, group)  # type: ignore[arg-type]
        report = quantize_model_(rounded, QuantizeOptions(**dict.fromkeys(PARTS[part], form)))
        parameters = sum(each.parameters for each in report.parts)
        accuracy = accuracy_by_kind(questions, answers(rounded, preprocessor, questions))["overall"]  # type: ignore[arg-type]
        result.append(
            {
                "part": part,
                "format": f"{bits} bits" + (f", group {group}" if group else ""),
                "method": method,
                "bytes": report.total_bytes,
                "rounding": (sum(each.rounding**2 * each.parameters for each in report.parts) / parameters) ** 0.5,
                "accuracy": accuracy,
            }
        )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy of the demo model with parts of it rounded to few bits.")
    parser.add_argument("model", type=Path, nargs="?", default=FOLDER / "model.pt")
    parser.add_argument("--questions", type=int, default=300, help="how many (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    checkpoint = load_model_pt(arguments.model)
    preprocessor = Preprocessor.from_files(dict(checkpoint.files))
    found = rows(checkpoint.model, preprocessor, held_out_questions(arguments.questions))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    print("| part | format | method | KiB | rounding | accuracy |\n|---|---|---|---|---|---|")
    for row in found:
        size = "" if row["bytes"] is None else f"{row['bytes'] / 1024:.1f}"
        print(
            f"| {row['part']} | {row['format']} | {row['method']} | {size} | {row['rounding']:.2%} | {row['accuracy']:.1%} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
