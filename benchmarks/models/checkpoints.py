"""Checkpoints of real shapes with random weights, written tensor by tensor, or made matrix by matrix when they are read.

python -m benchmarks.models.checkpoints SHAPE FOLDER      (a process of its own: the benchmark itself stays small)

Every tensor is cut out of a pool of normal numbers at a random place, again and again until it is full: as fast as the disk
takes them, and for what is measured as good as fresh ones. Standard deviations are 1 / sqrt(inputs), so that activations stay
near 1 through all layers and routers choose all experts; 0.02 in embeddings; norms are 1.
"""

import argparse
import json
import math
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPVisionConfig, Qwen2Config

from mote_export.atomic import atomic_folder
from mote_export.checkpoint.base import Checkpoint
from mote_export.checkpoint.stock_files import stock_files
from mote_export.checkpoint.tensor_files import TensorSpec
from mote_export.checkpoint.tensor_writer import TensorWriter
from mote_export.model import MoeSettings, MoteConfig, MoteForConditionalGeneration

from . import ROOT
from .shapes import KNOWN, Shape

sys.path.insert(0, str(ROOT / "tests"))
from tiny import byte_tokenizer, companion_files  # type: ignore[import-not-found]

SHARD_BYTES = 2 * 10**9
POOL = 1 << 24  # numbers
DTYPE = torch.bfloat16
EMBEDDING_STD = 0.02
ROUTER_GAIN = 2.0
_pools: dict[float, Tensor] = {}


def config_of(shape: Shape) -> MoteConfig:
    """LLaVA's configuration with a MoE in every layer; the special tokens are those of the byte tokenizer in `tests/tiny.py`."""
    tokenizer = byte_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden, intermediate_size=shape.vision_intermediate, projection_dim=768,
        num_hidden_layers=shape.vision_layers, num_attention_heads=shape.vision_heads, image_size=shape.picture,
        patch_size=shape.patch,
    )  # fmt: skip
    text = Qwen2Config(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocab,
        max_position_embeddings=32768, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )  # fmt: skip
    settings = MoeSettings(shape.experts, top_k=1, normalize_topk=False, layers=tuple(range(shape.layers)))
    return MoteConfig(
        moe=settings.to_dict(), vision_config=vision, text_config=text, projector_hidden_act="gelu",
        image_token_index=tokenizer.token_to_id("<|image_pad|>"), image_seq_length=shape.image_tokens,
        vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=True,
        architectures=[MoteForConditionalGeneration.__name__], dtype="bfloat16",
    )  # fmt: skip


def skeleton_of(shape: Shape) -> MoteForConditionalGeneration:
    """On torch's meta device."""
    with torch.device("meta"):
        return MoteForConditionalGeneration(config_of(shape))


def stored_names(skeleton: MoteForConditionalGeneration) -> dict[str, tuple[int, ...]]:
    """What a checkpoint holds: the head is tied to the embedding."""
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    shapes.pop("lm_head.weight", None)
    return shapes


def deviation(name: str, shape: tuple[int, ...]) -> float:
    """Of a tensor's numbers; 0: they are all 1."""
    if len(shape) < 2:
        return EMBEDDING_STD if name.endswith("bias") else 0.0
    if "embed" in name and "patch" not in name:
        return EMBEDDING_STD
    inputs = math.prod(shape[1:]) if len(shape) == 4 else shape[-1]
    return (ROUTER_GAIN if "router" in name else 1.0) * inputs**-0.5


class RandomTensor:
    """A `TensorSource` whose values are made when they are read, always the same ones."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape
        self.dtype: torch.dtype | str = DTYPE
        self._std = deviation(name, shape)

    def read(self) -> Tensor:
        if len(self.shape) < 3:
            return self._part(0, self.shape)
        return torch.stack([self.part(index) for index in range(self.shape[0])])

    def part(self, index: int) -> Tensor:
        return self._part(index, self.shape[1:]) if len(self.shape) >= 3 else self.read()[index]

    def parts(self) -> Iterator[Tensor]:
        """The tensor in consecutive pieces: the matrices of experts, else the whole."""
        if len(self.shape) < 3:
            yield self.read()
        else:
            yield from (self.part(index) for index in range(self.shape[0]))

    def _part(self, index: int, shape: tuple[int, ...]) -> Tensor:
        result = torch.ones(shape, dtype=DTYPE)
        if self._std:
            _fill(result.reshape(-1), self._std, zlib.crc32(f"{self.name} {index}".encode()))
        return result


def _fill(values: Tensor, std: float, seed: int) -> None:
    pool = _pools.get(std)
    if pool is None:
        generator = torch.Generator().manual_seed(0)
        pool = _pools[std] = (torch.randn(POOL, generator=generator) * std).to(DTYPE)
    generator = torch.Generator().manual_seed(seed)
    start = 0
    while start < len(values):
        place = int(torch.randint(0, POOL // 2, (), generator=generator))
        piece = pool[place : place + len(values) - start]
        values[start : start + len(piece)] = piece
        start += len(piece)


def random_tensors(skeleton: MoteForConditionalGeneration) -> dict[str, RandomTensor]:
    return {name: RandomTensor(name, shape) for name, shape in stored_names(skeleton).items()}


def text_files(shape: Shape, skeleton: MoteForConditionalGeneration) -> dict[str, str]:
    """Tokenizer, image processor and what else stands beside the weights."""
    return dict(stock_files(Checkpoint(shape.name, skeleton, companion_files(shape.picture))))


def write_checkpoint(shape: Shape, folder: Path, max_shard_bytes: int = SHARD_BYTES) -> int:
    """A transformers folder that `mote-export` opens, complete or not at all; holds one matrix at a time.

    Args:
        folder: absent or empty.
        max_shard_bytes: of a safetensors file.

    Returns:
        The bytes of its weights.
    """
    skeleton = skeleton_of(shape)
    tensors = random_tensors(skeleton)
    specs = {name: TensorSpec(tensor.shape, DTYPE) for name, tensor in tensors.items()}
    with atomic_folder(folder) as temporary:
        with (
            TensorWriter(temporary, specs, max_shard_bytes) as writer,
            tqdm(total=writer.num_bytes, desc=f"checkpoint {shape.name}", unit="B", unit_scale=True) as bar,
        ):
            for name, tensor in tensors.items():
                offset = 0
                for part in tensor.parts():
                    bar.update(writer.write(name, offset, part))
                    offset += part.numel()
        config: dict[str, Any] = skeleton.config.to_dict()
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, text in text_files(shape, skeleton).items():
            (temporary / name).write_text(text, encoding="utf-8")
    return writer.num_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=KNOWN)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    write_checkpoint(KNOWN[arguments.shape], arguments.folder)


if __name__ == "__main__":
    main()
