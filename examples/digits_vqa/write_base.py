"""Write the dense model that the demo model was up-cycled from, as a folder of transformers.

python examples/digits_vqa/write_base.py [-o FOLDER] [--model model.pt]

Stage III trains the routed experts and the routers only: without them model.pt is the dense model after stage II, to the last bit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mote_export.atomic import atomic_folder
from mote_export.cli.command import silence_libraries
from mote_runtime.errors import MoteError

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

    from mote_export.model import MoteForConditionalGeneration

FOLDER = Path(__file__).parent


def dense_model(mote: MoteForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The LLaVA model whose FFNs are the shared experts of `mote`, in its dtype."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    values = mote.config.to_dict()
    for key in ("moe", "model_type", "architectures"):
        values.pop(key)
    dense = LlavaForConditionalGeneration(LlavaConfig(**values)).to(mote.dtype)
    state = {
        name.replace(".mlp.shared_expert.", ".mlp."): tensor
        for name, tensor in mote.state_dict().items()
        if ".mlp.experts." not in name and ".mlp.router." not in name
    }
    dense.load_state_dict(state)
    return dense


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the dense model inside of the demo model.")
    parser.add_argument("-o", "--output", type=Path, default=Path("digits-base"), help="folder (default: %(default)s)")
    parser.add_argument("--model", type=Path, default=FOLDER / "model.pt", help="default: that of this folder")
    arguments = parser.parse_args()
    if arguments.output.exists() and (not arguments.output.is_dir() or any(arguments.output.iterdir())):
        print(
            f"write_base.py: {arguments.output} exists and is no empty folder: choose another with -o.", file=sys.stderr
        )
        return 1
    silence_libraries()  # before torch is imported
    import torch

    from mote_export.checkpoint import load_model_pt

    try:
        checkpoint = load_model_pt(arguments.model)
    except MoteError as error:
        print(f"write_base.py: {error}", file=sys.stderr)
        return 1
    model = dense_model(checkpoint.model).to(torch.bfloat16)  # what model.pt holds
    with atomic_folder(arguments.output) as temporary:
        model.save_pretrained(temporary)
        for name, content in checkpoint.files.items():
            (temporary / name).write_text(content, encoding="utf-8")
    print(f"{arguments.output}: {type(model).__name__}, {model.num_parameters():,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
