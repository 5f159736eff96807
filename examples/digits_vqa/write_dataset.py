"""Write the task as files: training scenes as LLaVA's conversation JSON, held-out questions as mote-eval reads them.

python examples/digits_vqa/write_dataset.py [-o FOLDER] [--scenes N] [--questions-per-scene N] [--held-out N]

FOLDER/train.json and FOLDER/test.json name the pictures in FOLDER/images. The scenes are those of the demo model's recipe and the
held-out questions are the first that evaluate.py asks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from held_out import held_out_questions
from mote_export.atomic import atomic_folder
from mote_export.cli.command import positive
from questions import DRAWS, ask_some
from scenes import make_scene, render

DEFAULT_SCENES = 2000
DEFAULT_QUESTIONS_PER_SCENE = 7  # as many as the demo model's recipe packs to a scene
DEFAULT_HELD_OUT = 450
IMAGES = "images"
_SEED = 21


def write_training_scenes(folder: Path, scenes: int, questions_per_scene: int) -> list[dict[str, Any]]:
    """Draws training scenes 0 to `scenes` - 1 into `folder`/images.

    Returns a conversation a scene. Its turns stand by themselves: none builds on an earlier one.
    """
    conversations = []
    for index in tqdm(range(scenes), desc="training scenes", unit="scene", disable=None):
        scene = make_scene("train", index)
        name = f"{IMAGES}/train-{index}.png"
        render(scene).save(folder / name)
        turns = []
        for asked in ask_some(scene, np.random.default_rng((_SEED, index)))[:questions_per_scene]:
            turns.append({"from": "human", "value": asked.question})
            turns.append({"from": "gpt", "value": asked.answer})
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        conversations.append({"id": f"train-{index}", "image": name, "conversations": turns})
    return conversations


def write_held_out_questions(folder: Path, count: int) -> list[dict[str, Any]]:
    """Draws the pictures of the first held-out questions, each about a scene of its own, and returns the questions."""
    questions = []
    for index, question in enumerate(
        tqdm(held_out_questions(count), desc="held-out questions", unit="question", disable=None)
    ):
        name = f"{IMAGES}/test-{index}.png"
        question.image.save(folder / name)
        questions.append({"image": name, "task": question.kind, "question": question.prompt, "answer": question.answer})
    return questions


def write_dataset(folder: Path, scenes: int, questions_per_scene: int, held_out: int) -> None:
    """Writes both sets to an absent or empty folder, complete or not at all."""
    with atomic_folder(folder) as temporary:
        (temporary / IMAGES).mkdir()
        training = write_training_scenes(temporary, scenes, questions_per_scene)
        testing = write_held_out_questions(temporary, held_out)
        for name, entries in (("train.json", training), ("test.json", testing)):
            (temporary / name).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    asked = sum(len(entry["conversations"]) // 2 for entry in training)
    print(f"{folder / 'train.json'}: {asked} questions about {scenes} scenes")
    print(f"{folder / 'test.json'}: {len(testing)} questions about handwriting that no training scene shows")


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the digit scenes and their questions as files.")
    parser.add_argument("-o", "--output", type=Path, default=Path("digits"), help="folder (default: %(default)s)")
    parser.add_argument("--scenes", type=positive, default=DEFAULT_SCENES, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--questions-per-scene",
        type=positive,
        default=DEFAULT_QUESTIONS_PER_SCENE,
        metavar="N",
        help=f"in training, at most {DRAWS}; fewer where a scene allows no more (default: %(default)s)",
    )
    parser.add_argument("--held-out", type=positive, default=DEFAULT_HELD_OUT, metavar="N", help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.output.exists() and (not arguments.output.is_dir() or any(arguments.output.iterdir())):
        print(
            f"write_dataset.py: {arguments.output} exists and is no empty folder: choose another with -o.",
            file=sys.stderr,
        )
        return 1
    write_dataset(arguments.output, arguments.scenes, arguments.questions_per_scene, arguments.held_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
