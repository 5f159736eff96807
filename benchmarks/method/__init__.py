"""MoTE beside MoE-LLaVA and dense models at equal expert memory, on scenes of handwritten digits: docs/results.md."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Scenes, prompts and pictures are those of the demo model, whose scripts import each other by bare name.
sys.path.insert(0, str(ROOT / "examples" / "digits_vqa"))
