"""The main job, from end to end: export the demo model, then ask it about held-out pictures in torch and in both runtimes.

    python examples/digits_vqa/demo.py            (make demo)

Writes demo-output/export/{onnx,executorch} and demo-output/answers.png. Exit code 0 only if every runtime gave torch's answer to
every question.
"""

import argparse
import json
import shutil
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from evaluate import Preprocessor, answers
from held_out import Question
from mote_export.checkpoint import load_checkpoint
from mote_export.cli.export import main as mote_export
from mote_export.passes import apply_passes, pack_ternary_experts
from mote_runtime import load

FOLDER = Path(__file__).parent
RUNTIMES = ("onnxruntime", "executorch")
QUESTIONS_PER_SCENE = 3
MAX_NEW_TOKENS = 32


@dataclass
class Asked:
    """A question about an example picture, and what was answered: "torch" and each runtime to its text."""

    picture: Path
    question: str
    truth: str
    kind: str
    replies: dict[str, str] = field(default_factory=dict)


def example_questions() -> list[Asked]:
    """Some questions of each example picture, of other kinds for each."""
    scenes = json.loads((FOLDER / "images" / "questions.json").read_text())
    chosen = []
    for index, scene in enumerate(scenes):
        listed = scene["questions"]
        for offset in range(QUESTIONS_PER_SCENE):
            entry = listed[(index + 2 * offset) % len(listed)]
            chosen.append(Asked(FOLDER / "images" / scene["image"], entry["question"], entry["answer"], entry["kind"]))
    return chosen


def ask_torch(model_path: Path, asked: list[Asked]) -> None:
    """The reference: packed weights evaluated by torch, with transformers' own tokenizer and image processor."""
    checkpoint = load_checkpoint(model_path)
    apply_passes(checkpoint.model.get_decoder(), [pack_ternary_experts()])
    questions = [Question(Image.open(a.picture).convert("RGB"), a.question, a.truth, a.kind) for a in asked]
    replies = answers(checkpoint.model, Preprocessor.from_files(dict(checkpoint.files)), questions)
    for entry, reply in zip(asked, replies, strict=True):
        entry.replies["torch"] = reply


def ask_runtime(folder: Path, runtime: str, asked: list[Asked]) -> None:
    with load(folder, runtime=runtime) as pipeline:
        for entry in asked:
            entry.replies[runtime] = pipeline.answer(entry.picture, entry.question, max_new_tokens=MAX_NEW_TOKENS).text


def draw(asked: list[Asked], path: Path) -> None:
    """A sheet of the pictures, each with its questions and the answers of torch and of all runtimes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pictures = list(dict.fromkeys(entry.picture for entry in asked))
    rows = -(-len(pictures) // 2)
    figure, axes = pyplot.subplots(rows, 4, figsize=(12, 1.9 * rows), width_ratios=[1, 2.2] * 2, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for picture, (left, right) in zip(pictures, axes.reshape(-1, 2), strict=False):
        left.imshow(Image.open(picture))
        text = "\n".join(describe(entry) for entry in asked if entry.picture == picture)
        right.text(0, 0.5, text, va="center", fontsize=9, linespacing=1.3)
    figure.savefig(path, dpi=110)


def describe(entry: Asked) -> str:
    """The question, and one line for the answer that all runtimes agree on, or a line for each where they do not."""
    mark = "right" if entry.replies["torch"] == entry.truth else f"wrong, it is: {entry.truth}"
    if len(set(entry.replies.values())) == 1:
        return f"{entry.question}\n    {entry.replies['torch']}   ({mark})"
    return "\n    ".join([entry.question, *(f"{name}: {text}" for name, text in entry.replies.items()), f"({mark})"])


def print_answers(asked: list[Asked]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Questions about held-out pictures", title_justify="left")
    for name in ("picture", "question", "truth", "torch", *RUNTIMES):
        table.add_column(name)
    for entry in asked:
        row = (entry.picture.name, entry.question, entry.truth, *entry.replies.values())
        table.add_row(*row, style="red" if len(set(entry.replies.values())) > 1 else None)
    Console(width=140).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FOLDER / "model.pt")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo-output"), help="replaced (default: demo-output)"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    export, sheet = arguments.output / "export", arguments.output / "answers.png"
    if (export / "onnx" / "mote.json").exists():  # of an earlier run
        shutil.rmtree(export)
    asked = example_questions()
    sample = ["--sample", str(asked[0].picture), asked[0].question]
    if code := mote_export([str(arguments.model), "-o", str(export), *sample]):
        return code
    ask_torch(arguments.model, asked)
    for runtime in RUNTIMES:
        ask_runtime(export, runtime, asked)
    print_answers(asked)
    draw(asked, sheet)
    differing = sum(len(set(entry.replies.values())) > 1 for entry in asked)
    right = sum(entry.replies["torch"] == entry.truth for entry in asked)
    print(f"\n{len(asked)} questions: {right} answered right; {differing} on which a runtime differs from torch.")
    print(f"picture of the scenes, questions and answers: {sheet}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
