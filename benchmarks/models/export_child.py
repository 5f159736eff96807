"""`mote-export`, which also opens a checkpoint that is none on a disk: each matrix is made when the exporter reads it.

python -m benchmarks.models.export_child CHECKPOINT OPTIONS...      (CHECKPOINT as of mote-export, or NAME.shape)
"""

import sys
from pathlib import Path

from mote_export import checkpoint
from mote_export.checkpoint.base import CheckpointFormat, OpenCheckpoint
from mote_export.cli.export import main as mote_export

from .checkpoints import config_of, random_tensors, skeleton_of, text_files
from .shapes import KNOWN, RANDOM_SUFFIX


def open_random(path: Path) -> OpenCheckpoint:
    """The model of the shape that an empty file is named after."""
    shape = KNOWN[path.stem]
    skeleton = skeleton_of(shape)
    return OpenCheckpoint(shape.name, path, config_of(shape), random_tensors(skeleton), text_files(shape, skeleton))


def is_random(path: Path) -> bool:
    return path.suffix == RANDOM_SUFFIX and path.stem in KNOWN


def main() -> int:
    made = CheckpointFormat(f"a file NAME{RANDOM_SUFFIX} of this benchmark", is_random, open_random)
    checkpoint.FORMATS = (made, *checkpoint.FORMATS)
    return mote_export(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
