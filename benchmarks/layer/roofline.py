"""The roofline: how many multiply-adds a second come of the bytes that an operator reads, and what the machine allows."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .limits import Limits
from .results import Record
from .shapes import MAIN_SHAPE

_LABELS = {
    "ours-2bit-none": "TernaryMoE 2bit",
    "ours-1.6bit-none": "TernaryMoE 1.6bit",
    "ours-2bit-int4": "TernaryMoE 2bit, shared int4",
    "ours-2bit-bf16": "TernaryMoE 2bit, shared bf16",
    "qmoe2-none": "QMoE 2-bit",
    "qmoe4-none": "QMoE 4-bit",
    "nbits2-none": "MatMulNBits 2-bit, one expert",
    "qmoe2-int4": "QMoE 2-bit + shared int4",
}
_COLORS = dict(
    zip(_LABELS, ("#0b5fa5", "#2ca6df", "#1b8a5a", "#7fbf3f", "#c0392b", "#e67e22", "#8e44ad", "#7f4f24"), strict=True)
)


def _lines(axes: Axes, limits: Limits, threads: int, x: np.ndarray) -> None:
    bandwidth, integer = limits.dram_bytes_s[threads], limits.integer_mul_adds_s[threads]
    axes.plot(x, np.minimum(x * bandwidth, integer) / 1e9, color="black", linewidth=1.5)
    axes.axhline(limits.float_mul_adds_s[threads] / 1e9, color="gray", linewidth=1, linestyle="--")
    left = float(x[0]) * 1.15
    axes.text(
        left, left * bandwidth / 1e9 * 1.15, f"DRAM {bandwidth / 1e9:.0f} GB/s", fontsize=8,
        rotation=math.degrees(math.atan(bandwidth / 1e9)), rotation_mode="anchor", transform_rotates_text=True,
    )  # fmt: skip
    for value, name in ((integer, "int8 dot products"), (limits.float_mul_adds_s[threads], "float32")):
        axes.text(
            float(x[-1]), value / 1e9 * 1.04, f"{name} {value / 1e9:.0f} G/s", ha="right", va="bottom", fontsize=8
        )


def _points(axes: Axes, records: list[Record]) -> None:
    for name, label in _LABELS.items():
        own = sorted((one for one in records if one.operator == name), key=lambda one: one.tokens)
        if not own:
            continue
        ours = name.startswith("ours")
        intensity = [one.mul_adds / one.bytes_read for one in own]
        speed = [one.mul_adds / one.median_ms / 1e6 for one in own]
        axes.plot(
            intensity, speed, "o-" if ours else "s:", color=_COLORS[name], label=label, markersize=6 if ours else 5, linewidth=1
        )  # fmt: skip
        if name == "ours-2bit-none":
            for one, at, height in zip(own, intensity, speed, strict=True):
                axes.annotate(f"{one.tokens}", (at, height), textcoords="offset points", xytext=(-3, 7), fontsize=8)


def draw(records: list[Record], limits: Limits, path: Path) -> None:
    """`path`.png and .svg: a panel for each number of threads, at the main shape (or the first one measured)."""
    shapes = {record.shape for record in records}
    shape = MAIN_SHAPE.name if MAIN_SHAPE.name in shapes else next(iter(shapes))
    shown = [one for one in records if one.shape == shape and not one.failure]
    threads = sorted({one.threads for one in shown})
    if not threads:
        return
    figure, panels = plt.subplots(
        1, len(threads), figsize=(6.5 * len(threads), 6), squeeze=False, sharey=True, layout="constrained"
    )
    greatest = max(one.mul_adds / one.bytes_read for one in shown)
    x = np.geomspace(0.4, max(greatest * 1.5, 60), 200)
    for axes, count in zip(panels[0], threads, strict=True):
        _lines(axes, limits, count, x)
        _points(axes, [one for one in shown if one.threads == count])
        axes.set(xscale="log", yscale="log", title=f"{count} thread{'s' * (count > 1)}")
        axes.set(xlabel="multiply-adds per byte of weights")
        axes.grid(True, which="both", alpha=0.15)
    panels[0][0].set(ylabel="G multiply-adds per second")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(f"One layer of {shape}: circles ours, squares peers; the numbers are tokens")
    figure.savefig(path.with_suffix(".png"), dpi=130)
    figure.savefig(path.with_suffix(".svg"))
    plt.close(figure)
