"""A constant weight of a graph -> ternary codes and one scale, or the reason why not; packed when it is written, not before."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mote_export.onnx_import.constants import Array, Recipe, computed, recipe
from mote_export.onnx_import.fit import Fit, fit_ternary, ternary_codes
from mote_export.packing import MAX_WIDTH, PACKINGS, tiles
from mote_export.packing.lines import LINE, ROWS
from mote_export.packing.ternary import NotTernaryError
from mote_runtime.errors import MoteError

FLOAT_NOISE = 4e-6  # of a scale: what a straight-through estimator, w + (t * s - w), leaves in float32
NEARLY = 0.25  # relative error: rounding normally distributed weights to ternary costs 0.44
SAMPLE = 1 << 20  # elements that are looked at before a whole matrix is


@dataclass(frozen=True, eq=False)
class TernaryMatrix:
    """[rows, columns] = codes * scale, up to `error`.

    Attributes:
        name: of the stored weight, or of what the graph computes from it.
        scale: at least 0.
        error: as in `TernaryWeight`: 0 unless it was rounded on request.
        stored_bytes: of the weight before.
        codes: reads them, int8 [some rows, columns] at a time, a multiple of 16 rows but for the last.
    """

    name: str
    rows: int
    columns: int
    scale: float
    error: float
    stored_bytes: int
    codes: Callable[[], Iterator[NDArray[np.int8]]] = field(repr=False)


class NotPackableError(MoteError):
    """A weight stays as it is; the message says why."""


class Weights:
    """The matrices of one model, each looked at once however many nodes use it.

    Args:
        model: the graph, whose initializers packed weights are added to.
        packing: a key of `PACKINGS`.
        ternarize: round weights that are nearly ternary.
        looked: called when a weight was looked at.
    """

    def __init__(self, model: ir.Model, packing: str, ternarize: bool, looked: Callable[[], object]) -> None:
        self.model, self.packing, self.ternarize, self._looked = model, packing, ternarize, looked
        self._found: dict[tuple[ir.Value, bool], TernaryMatrix | str] = {}
        self._packed: dict[tuple[TernaryMatrix, ...], ir.Value] = {}
        self._names = {
            value.name for graph in model.graphs() for value in ir.convenience.create_value_mapping(graph).values()
        }
        self.opset = model.graph.opset_imports.get("", 21)

    def ternary(self, value: ir.Value, *, is_transposed: bool) -> TernaryMatrix:
        """The matrix of a weight.

        Args:
            value: [K, N], or [N, K] if it `is_transposed`.

        Raises:
            NotPackableError: it is not constant, not a matrix, too wide, or not ternary.
        """
        key = (value, is_transposed)
        if key not in self._found:
            try:
                self._found[key] = self._look_at(value, is_transposed)
            except MoteError as error:
                self._found[key] = str(error)
            self._looked()
        found = self._found[key]
        if isinstance(found, str):
            raise NotPackableError(found)
        return found

    def _look_at(self, value: ir.Value, is_transposed: bool) -> TernaryMatrix:
        found = recipe(value)
        if found is None:
            replaceable = value.is_graph_input() and value.const_value is not None
            raise MoteError(
                "its weight is an input that callers may replace" if replaceable else "its weight is not constant"
            )
        shape = value.shape
        if shape is not None and len(shape) != 2:
            raise MoteError(f"its weight has {len(shape)} dimensions, expected 2")
        with computed(found, self.opset) as array:
            if array.ndim != 2:
                raise MoteError(f"its weight has {array.ndim} dimensions, expected 2")
            rows, columns = array.shape if is_transposed else array.shape[::-1]
            if not 0 < min(rows, columns) <= max(rows, columns) <= MAX_WIDTH:
                raise MoteError(f"its weight is {rows} x {columns}, 1 to {MAX_WIDTH} rows and columns can be packed")
            if array.dtype.kind not in "fiV" and array.dtype.name not in ("bfloat16",):
                raise MoteError(f"its weight is of type {array.dtype}, expected a float type")
            fit = self._fit(array)
        return TernaryMatrix(
            name=value.name or "weight",
            rows=rows,
            columns=columns,
            scale=fit.scale,
            error=fit.error,
            stored_bytes=int(rows * columns * found.itemsize),
            codes=lambda: self._codes(found, is_transposed, fit.scale),
        )

    def _fit(self, array: Array) -> Fit:
        if array.size > SAMPLE:
            rows = max(1, SAMPLE // array.shape[1])
            self._exact_or_near(array[:rows], f" of its first {rows * array.shape[1]}")
        return self._exact_or_near(array, "")

    def _exact_or_near(self, array: Array, where: str) -> Fit:
        fit = fit_ternary(array)
        if fit.deviation <= FLOAT_NOISE:
            return replace(fit, error=0.0)
        if fit.error > NEARLY:
            raise MoteError(
                f"it is not ternary: {fit.count / array.size:.0%}{where} of its weights are not -1, 0 or 1 times one number, the "
                f"largest deviation is {fit.deviation:.3g} of it, and rounding would change them by {fit.error:.0%}"
            )
        if not (self.ternarize or where):
            raise NotTernaryError(fit.count, array.size, fit.scale, fit.deviation, fit.error)
        return fit

    def _codes(self, found: Recipe, is_transposed: bool, scale: float) -> Iterator[NDArray[np.int8]]:
        with computed(found, self.opset) as array:
            yield from ternary_codes(array if is_transposed else array.T, scale)

    def _pack(self, matrix: TernaryMatrix, result: NDArray[np.uint8]) -> None:
        """Into lines [ceil(N/16), ceil(K/C), 64], some rows after the other."""
        packing, first = PACKINGS[self.packing], 0
        for codes in matrix.codes():
            lines = packing.pack(codes)
            result[first : first + len(lines)] = lines
            first += len(lines)

    def packed(self, matrix: TernaryMatrix) -> ir.Value:
        """An initializer of the model, uint8 [ceil(N/16), ceil(K/C), 64]; one for all nodes that use the matrix."""
        return self._initializer(
            (matrix,), f"{matrix.name}_packed", self._lines(matrix), lambda result: self._pack(matrix, result)
        )

    def packed_down(self, downs: Sequence[TernaryMatrix], name: str) -> ir.Value:
        """The matrices of all experts, uint8 [E, ceil(H/16), ceil(I/C), 64]."""

        def pack(result: NDArray[np.uint8]) -> None:
            for down, lines in zip(downs, result, strict=True):
                self._pack(down, lines)

        return self._initializer(tuple(downs), name, [len(downs), *self._lines(downs[0])], pack)

    def packed_gate_up(self, gates: Sequence[TernaryMatrix], ups: Sequence[TernaryMatrix], name: str) -> ir.Value:
        """Both matrices of all experts, uint8 [E, ceil(I/16), 2, ceil(H/C), 64]."""
        row_tiles, column_tiles, line = self._lines(gates[0])

        def pack(result: NDArray[np.uint8]) -> None:
            for gate, up, lines in zip(gates, ups, result, strict=True):
                self._pack(gate, lines[:, 0])
                self._pack(up, lines[:, 1])

        return self._initializer((*gates, *ups), name, [len(gates), row_tiles, 2, column_tiles, line], pack)

    def _lines(self, matrix: TernaryMatrix) -> tuple[int, int, int]:
        return tiles(matrix.rows, ROWS), tiles(matrix.columns, PACKINGS[self.packing].inputs), LINE

    def _initializer(
        self, key: tuple[TernaryMatrix, ...], name: str, shape: Sequence[int], pack: Callable[[NDArray[np.uint8]], None]
    ) -> ir.Value:
        """A tensor that `pack` fills when it is written."""

        def filled() -> ir.Tensor:
            result = np.empty(shape, np.uint8)
            pack(result)
            return ir.tensor(result)

        if key not in self._packed:
            name = self.unique(name)
            tensor = ir.LazyTensor(filled, ir.DataType.UINT8, ir.Shape(shape), name=name)
            self._packed[key] = self._add(tensor, name)
        return self._packed[key]

    def numbers(self, values: Array, name: str) -> ir.Value:
        """A small float32 initializer."""
        name = self.unique(name)
        return self._add(ir.tensor(np.asarray(values, np.float32), name=name), name)

    def unique(self, name: str) -> str:
        """`name`, or with a number behind it where a value of the model has it; taken from now on."""
        candidates = (name if index == 0 else f"{name}_{index}" for index in range(len(self._names) + 1))
        free = next(candidate for candidate in candidates if candidate not in self._names)
        self._names.add(free)
        return free

    def _add(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """To the main graph, whose values its subgraphs can use."""
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.model.graph.register_initializer(value)
        return value
