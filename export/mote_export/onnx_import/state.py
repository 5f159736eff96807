"""What the rules of one rewriting share: options, weights, and the record of what was done and what was not."""

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from mote_export.defaults import DEFAULT_PACKING
from mote_export.onnx_import.activations import Activation, rounded_activation
from mote_export.onnx_import.graph import FLOATS, rank
from mote_export.onnx_import.weights import NotPackableError, TernaryMatrix, Weights
from mote_export.packing import PACKINGS
from mote_runtime.errors import MoteError

MAX_RANK = 4  # of x, docs/operator.md
NOT_ROUNDED = (
    "its activations are not rounded to 8 bits, as the operator does, so the rewritten model would give other numbers: "
    "--quantize-activations allows that"
)


@dataclass(frozen=True)
class RewriteOptions:
    """What a rewriting may do.

    Attributes:
        packing: of ternary weights, a key of `PACKINGS`.
        quantize_activations: also rewrite products whose activations the graph does not round to 8 bits. This changes numbers.
        ternarize: also rewrite weights that are nearly ternary, rounded. This changes numbers.

    Raises:
        MoteError: an unknown packing.
    """

    packing: str = DEFAULT_PACKING
    quantize_activations: bool = False
    ternarize: bool = False

    def __post_init__(self) -> None:
        if self.packing not in PACKINGS:
            raise MoteError(f"packing is {self.packing!r}, expected {', '.join(map(repr, PACKINGS))}.")


@dataclass(frozen=True)
class Rewritten:
    """A node that mote's operator has taken the place of.

    Attributes:
        op: TernaryMatMul or TernaryMoE.
        name: of the new node.
        shape: [N, K], or [E, I, H].
        bytes_before, bytes_after: of its weights as stored.
        packing: a key of `PACKINGS`.
        activations: `absorbed`: the nodes that rounded them are gone; `repeated`: rounded ones are rounded again, which changes
            nothing; `new`: the graph did not round them.
        error: relative error of weights that were rounded on request, else 0.
    """

    op: str
    name: str
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    packing: str
    activations: str
    error: float


@dataclass(frozen=True)
class Left:
    """A node that stays, and why."""

    op: str
    name: str
    shape: list[int | str] | None
    reason: str


def _nothing() -> None:
    pass


@dataclass
class State:
    """Of one rewriting of one model."""

    model: ir.Model
    options: RewriteOptions
    looked: Callable[[], object] = _nothing  # called when a weight was looked at
    weights: Weights = field(init=False)
    matmuls: dict[ir.Node, tuple[TernaryMatrix, Rewritten]] = field(default_factory=dict)  # by the new node
    experts: list[Rewritten] = field(default_factory=list)
    reasons: dict[ir.Node, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = Weights(self.model, self.options.packing, self.options.ternarize, self.looked)

    def refuse(self, node: ir.Node, reason: str) -> MatchResult:
        """The result of a check that fails; the report shows the reason."""
        self.reasons[node] = reason.rstrip(".")  # that of an error
        return MatchResult().fail(reason)

    def activation(self, value: ir.Value) -> Activation:
        """What the operator is given in place of `value`. Raises NotPackableError where the graph does not round it."""
        if value.dtype not in FLOATS:
            raise NotPackableError(f"its activations are of type {value.dtype}, expected a float type")
        dimensions = rank(value)
        if dimensions is None or not 1 <= dimensions <= MAX_RANK:
            raise NotPackableError(
                f"its activations have {dimensions or 'unknown'} dimensions, expected 1 to {MAX_RANK}"
            )
        found = rounded_activation(value)
        if found is not None:
            return found
        if self.options.quantize_activations:
            return Activation(value, "new")
        raise NotPackableError(NOT_ROUNDED)
