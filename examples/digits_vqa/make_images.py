"""Write the example pictures and their true answers: images/*.png and images/questions.json, all held-out scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from questions import KINDS, ask
from scenes import make_scene, render

FOLDER = Path(__file__).parent / "images"
SCENES = range(8)
_SEED = 7


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    listed = []
    for index in SCENES:
        scene = make_scene("test", index)
        name = f"scene-{index}.png"
        render(scene).save(FOLDER / name, optimize=True)
        rng = np.random.default_rng((_SEED, index))
        asked = [found for kind in KINDS if (found := ask(scene, kind, rng)) is not None]
        listed.append({"image": name, "questions": [found._asdict() for found in asked]})
    (FOLDER / "questions.json").write_text(json.dumps(listed, indent=2) + "\n")


if __name__ == "__main__":
    main()
