"""Writes layout_*_v1.json from the text of docs/layout.md in plain loops, independent of both implementations.

    python tests/vectors/make_layout_vectors.py

The files are committed; they change only when the layout's version does. Every file has the same form: cases of rows x cols
values, row by row, and the packed bytes in hexadecimal. The key of the values is `ternary` (-1, 0, 1) for packings of ternary
weights, else `codes`: integers of -8..7 for int4 and -127..127 for int8, and bit patterns 0..65535 for bf16.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

Matrix = list[list[int]]
ROWS = 16  # of a line


def shapes(inputs: int) -> dict[str, tuple[int, int]]:
    """rows x cols, on and beside the borders of lines of 16 x `inputs`."""
    return {
        "one": (1, 1),
        "one tile": (16, inputs),
        "row tail": (17, inputs),
        "input tail": (16, inputs + 1),
        "both tails": (5, 2 * inputs + 5),
        "two by three tiles": (32, 3 * inputs),
    }


def at(matrix: Matrix, n: int, k: int) -> int:
    """The value of row n, input k; whatever lies outside of the matrix is zero."""
    return matrix[n][k] if n < len(matrix) and k < len(matrix[0]) else 0


def byte_2bit(matrix: Matrix, n: int, kb: int, j: int) -> int:
    return sum((at(matrix, n, 16 * kb + 4 * p + j) + 1) << (2 * p) for p in range(4))


def byte_1_6bit(matrix: Matrix, n: int, kb: int, j: int) -> int:
    c0, c1, c2, c3, c4 = (at(matrix, n, 20 * kb + 4 * p + j) + 1 for p in range(5))
    return 81 * c4 + 27 * c3 + 9 * c2 + 3 * c1 + c0


def byte_int4(matrix: Matrix, n: int, kb: int, j: int) -> int:
    return sum((at(matrix, n, 8 * kb + 4 * p + j) + 8) << (4 * p) for p in range(2))


def byte_int8(matrix: Matrix, n: int, kb: int, j: int) -> int:
    return at(matrix, n, 4 * kb + j) % 256


def byte_bf16(matrix: Matrix, n: int, kb: int, j: int) -> int:
    bits = at(matrix, n, 2 * kb + j // 2)
    return bits >> 8 if j % 2 else bits & 255


# packing: seed, inputs of a line, least and greatest value, byte j of row n in line kb
FORMATS: dict[str, tuple[int, int, int, int, Callable[[Matrix, int, int, int], int]]] = {
    "2bit": (2506, 16, -1, 1, byte_2bit),
    "1.6bit": (2507, 20, -1, 1, byte_1_6bit),
    "int4": (2508, 8, -8, 7, byte_int4),
    "int8": (2509, 4, -127, 127, byte_int8),
    "bf16": (2510, 2, 0, 65535, byte_bf16),
}


def pack(matrix: Matrix, inputs: int, byte: Callable[[Matrix, int, int, int], int]) -> bytes:
    row_tiles, col_tiles = -(-len(matrix) // ROWS), -(-len(matrix[0]) // inputs)
    return bytes(
        byte(matrix, ROWS * nb + r, kb, j)
        for nb in range(row_tiles)
        for kb in range(col_tiles)
        for r in range(ROWS)
        for j in range(4)
    )


def main() -> None:
    for packing, (seed, inputs, least, greatest, byte) in FORMATS.items():
        random.seed(seed)
        key, values = ("ternary" if (least, greatest) == (-1, 1) else "codes"), range(least, greatest + 1)
        cases = []
        for name, (rows, cols) in shapes(inputs).items():
            matrix = [[random.choice(values) for _ in range(cols)] for _ in range(rows)]
            flat = [value for row in matrix for value in row]
            packed = pack(matrix, inputs, byte).hex()
            cases.append({"name": name, "rows": rows, "cols": cols, key: flat, "packed_hex": packed})
        document = {"layout_version": 1, "packing": packing, "cases": cases}
        path = Path(__file__).with_name(f"layout_{packing}_v1.json")
        path.write_text(json.dumps(document) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
