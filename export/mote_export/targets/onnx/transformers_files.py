"""What transformers and its kin (optimum's ORTModel classes, AutoProcessor) read of a folder of graphs."""

import json
from pathlib import Path

from mote_export.checkpoint import Checkpoint
from mote_export.checkpoint.stock_files import PROCESSOR_CONFIG, stock_files


def write_transformers_files(checkpoint: Checkpoint, folder: Path) -> None:
    """config.json, generation_config.json, the processor's files; processor_config.json keeps what it holds for others."""
    checkpoint.model.config.save_pretrained(folder)
    for name, content in stock_files(checkpoint).items():
        path = folder / name
        if name == PROCESSOR_CONFIG and path.exists():
            # onnxruntime-genai and transformers both look for this name, and each passes over the other's keys.
            merged = {**json.loads(path.read_text(encoding="utf-8")), **json.loads(content)}
            content = json.dumps(merged, indent=2) + "\n"
        path.write_text(content, encoding="utf-8")
