"""Models of the first seed as mote-export writes them: bytes of their experts, and their answers in both runtimes."""

from __future__ import annotations

import json
import shutil
from typing import Any

from mote_export.atomic import atomic_path
from mote_export.evaluation import Question, evaluate
from mote_export.evaluation.runtime_model import RuntimeModel
from mote_export.exporter import export
from mote_export.passes import PackOptions

from . import runs
from .data import load_scenes
from .evaluation import held_out_questions
from .recipe import Recipe
from .runs import Folder
from .storage import GROUP

# A row of the table, its variant, and how it is exported. Stock operators of both runtimes have no 3 bits: those codes lie in 4.
EXPORTED = (
    ("mote-bf16", "mote", PackOptions(shared_expert="bf16")),
    ("mote-int8", "mote", PackOptions(shared_expert="int8")),
    ("mote-int4", "mote", PackOptions(shared_expert="int4", shared_group_size=GROUP)),
    ("moe-llava-int4", "moe-llava", PackOptions(full_experts="int4", linear_group_size=GROUP)),
    ("moe-llava-int3", "moe-llava", PackOptions(full_experts="int3", linear_group_size=GROUP)),
)
TARGETS = {"onnx": "onnxruntime", "executorch": "executorch"}
QUESTIONS = 100  # of each task; both runtimes answer one after another


def measure_exports(folder: Folder, recipe: Recipe, seed: int) -> None:
    """Writes what was found to the folder of exports, last of all."""
    folder.exports.mkdir(exist_ok=True)
    scenes = load_scenes(folder.test)
    per_task = min(QUESTIONS, recipe.questions, len(scenes.digits))
    questions = [
        Question(
            each.asked.question,
            (each.asked.answer,),
            each.task,
            scenes.pixels[each.scene].permute(1, 2, 0).contiguous().numpy(),
        )
        for each in held_out_questions(scenes, per_task)
    ]
    found: dict[str, Any] = {}
    for row, variant, options in EXPORTED:
        if not runs.is_done(folder.variant(variant, seed)):
            continue
        target = folder.exports / row
        shutil.rmtree(target, ignore_errors=True)
        results = export(folder.variant(variant, seed) / runs.MODEL, target, list(TARGETS), pack=options)
        found[row] = {"bytes": results[0].memory.total}
        replies = {}
        for name, runtime in TARGETS.items():
            with RuntimeModel.load(target / name, runtime) as model:
                evaluation = evaluate(model.answers, questions)
            replies[name] = evaluation.answers
            found[row][name] = evaluation.overall.mean
        same = sum(one == other for one, other in zip(*replies.values(), strict=True))
        found[row] |= {"questions": len(questions), "same_answers": same}
    with atomic_path(folder.exports / "result.json") as path:
        path.write_text(json.dumps(found, indent=2) + "\n")
