"""Writes layout_2bit_v1.json from the text of docs/layout.md in plain loops, independent of both implementations.

    python tests/vectors/make_layout_vectors.py

The file is committed; it changes only when the layout's version does.
"""

import json
import random
from pathlib import Path

SHAPES = {
    "one": (1, 1),
    "one tile": (16, 16),
    "row tail": (17, 16),
    "input tail": (16, 17),
    "both tails": (5, 37),
    "two by three tiles": (32, 48),
}


def pack_line(ternary: list[list[int]], row_tile: int, col_tile: int) -> bytes:
    """The 64 bytes of a line; whatever lies outside of the matrix is zero, code 1."""
    line = bytearray(64)
    for r in range(16):
        for j in range(4):
            for p in range(4):
                n, k = 16 * row_tile + r, 16 * col_tile + 4 * p + j
                inside = n < len(ternary) and k < len(ternary[0])
                code = (ternary[n][k] if inside else 0) + 1
                line[4 * r + j] |= code << (2 * p)
    return bytes(line)


def pack(ternary: list[list[int]]) -> bytes:
    row_tiles, col_tiles = (len(ternary) + 15) // 16, (len(ternary[0]) + 15) // 16
    return b"".join(pack_line(ternary, nb, kb) for nb in range(row_tiles) for kb in range(col_tiles))


def main() -> None:
    random.seed(2506)
    cases = []
    for name, (rows, cols) in SHAPES.items():
        ternary = [[random.choice((-1, 0, 1)) for _ in range(cols)] for _ in range(rows)]
        flat = [value for row in ternary for value in row]
        cases.append({"name": name, "rows": rows, "cols": cols, "ternary": flat, "packed_hex": pack(ternary).hex()})
    document = {"layout_version": 1, "packing": "2bit", "cases": cases}
    path = Path(__file__).with_name("layout_2bit_v1.json")
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
