"""What is measured: decoders of Qwen2.5's shapes under CLIP's tower of LLaVA, and the ways in which they are exported."""

from dataclasses import dataclass
from typing import Literal

Target = Literal["onnx", "executorch"]
TARGETS: tuple[Target, ...] = ("onnx", "executorch")
RUNTIME: dict[Target, str] = {"onnx": "onnxruntime", "executorch": "executorch"}

THREADS = 2
CUT = "1.5B-4l"
TEXT_TOKENS = 32  # of a question about a picture, with the frame of the prompt
SMALL_PICTURE, SMALL_IMAGE_TOKENS = 112, 64
BF16_BYTES = 2


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; those of the vision tower are CLIP ViT-L/14-336's unless said otherwise.

    Attributes:
        on_disk: whether its checkpoint is written; else each matrix is made when the exporter reads it.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int = 2
    experts: int = 4
    vocab: int = 151936
    picture: int = 336
    vision_layers: int = 24
    vision_hidden: int = 1024
    vision_intermediate: int = 4096
    vision_heads: int = 16
    patch: int = 14
    on_disk: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def image_tokens(self) -> int:
        return (self.picture // self.patch) ** 2

    @property
    def ffn_parameters(self) -> int:
        """F: of the feed-forward layers, once."""
        return 3 * self.hidden * self.intermediate * self.layers

    @property
    def attention_parameters(self) -> int:
        """Of the four projections in all layers."""
        return self.layers * 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim

    @property
    def checkpoint_bytes(self) -> int:
        """About: feed-forward layers, attention, embedding and the tower, in bfloat16."""
        vision = self.vision_layers * self.vision_hidden * (4 * self.vision_hidden + 2 * self.vision_intermediate)
        rest = self.attention_parameters + self.vocab * self.hidden + vision
        return BF16_BYTES * ((1 + self.experts) * self.ffn_parameters + rest)

    @property
    def export_bytes(self) -> int:
        """Of the largest export, about: ternary experts in 2 bits, the shared one in 16, the rest in float32, the head twice."""
        rest = self.checkpoint_bytes // BF16_BYTES - (1 + self.experts) * self.ffn_parameters
        head = self.vocab * self.hidden
        return self.experts * self.ffn_parameters // 4 + BF16_BYTES * self.ffn_parameters + 4 * (rest + head)

    def kv_bytes(self, positions: int, itemsize: int = 4) -> int:
        """Of the KV cache over so many positions."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize * positions


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("0.5B", 896, 4864, layers=24, heads=14),
        Shape("1.5B", 1536, 8960, layers=28, heads=12),
        Shape("3B", 2048, 11008, layers=36, heads=16),
        Shape("3B-16", 2048, 11008, layers=36, heads=16, experts=16, on_disk=False),
        # A seventh of 1.5B, vocabulary included: what --portable makes of all of it would take some 50 GB.
        Shape(CUT, 1536, 8960, layers=4, heads=12, vocab=21760, vision_layers=4),
        # Not a model to measure for itself: its tower takes the small picture, see `report.first_token`.
        Shape("112px", 896, 4864, layers=1, heads=14, picture=SMALL_PICTURE),
    )
}
QUICK = (
    Shape("quick", 896, 4864, layers=4, heads=14, vocab=4096, picture=SMALL_PICTURE, vision_layers=2),
    Shape("quick-16", 896, 4864, layers=1, heads=14, vocab=512, picture=SMALL_PICTURE, vision_layers=2, experts=16,
          on_disk=False),
)  # fmt: skip
KNOWN = SHAPES | {shape.name: shape for shape in QUICK}
RANDOM_SUFFIX = ".shape"  # of the file that stands for a checkpoint that is not on the disk


@dataclass(frozen=True)
class Preset:
    """A way to export, as the options of `mote-export`.

    Attributes:
        shapes: of which shapes it is measured by default; empty: all.
        bytes_of_f: what the paper's formula gives for 4 experts and the shared one, in units of F bytes.
    """

    name: str
    options: tuple[str, ...]
    shapes: tuple[str, ...] = ()
    bytes_of_f: float | None = None


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("mobile", ("--preset", "mobile")),
        Preset("balanced", ("--preset", "balanced")),
        Preset("lossless", ("--preset", "lossless")),
        Preset("portable", ("--preset", "mobile", "--portable"), (CUT, "quick")),
        Preset("mobile-1.6bit", ("--preset", "mobile", "--packing", "1.6bit"), ("0.5B",)),
    )
}
#: What the presets stand for, for an exporter that does not know them.
EXPLICIT = {
    "mobile": ("--packing", "2bit", "--shared-expert", "int4", "--linear", "int4", "--embedding", "int4"),
    "balanced": ("--packing", "2bit", "--shared-expert", "int8", "--linear", "int8", "--embedding", "int8"),
    "lossless": ("--packing", "2bit", "--shared-expert", "bf16"),
}
#: Of shapes that are there for one question only.
ONLY_PRESETS = {
    CUT: ("mobile", "portable"),
    "3B-16": ("mobile",),
    "112px": ("mobile", "balanced", "lossless"),
    "quick-16": ("mobile",),
}


def presets_of(shape: Shape, chosen: list[str]) -> list[Preset]:
    """In the order that they are measured in."""
    known = [PRESETS[name] for name in chosen]
    only = ONLY_PRESETS.get(shape.name)
    return [
        preset
        for preset in known
        if (not preset.shapes or shape.name in preset.shapes) and (only is None or preset.name in only)
    ]
