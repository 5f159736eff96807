"""What is measured: real shapes of a decoder's FFN, numbers of tokens, threads."""

from dataclasses import dataclass

EXPERTS = 4
BLOCK = 128  # of the peers' scales, and of our int4

TOKENS = (1, 4, 16, 128, 512)
THREADS = (1, 2)
#: Up to here a call is bound by memory, so more layers take turns, see `graphs.layers_in_turn`.
MAX_DECODE_TOKENS = 16


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    intermediate: int

    @property
    def ffn_weights(self) -> int:
        """Weights of one expert, or of the shared one."""
        return 3 * self.hidden * self.intermediate


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("0.5B", 896, 4864),
        Shape("1.5B", 1536, 8960),
        Shape("3B", 2048, 11008),
    )
}
MAIN_SHAPE = SHAPES["1.5B"]
LOAD_LAYERS = 28  # of the 1.5B model
