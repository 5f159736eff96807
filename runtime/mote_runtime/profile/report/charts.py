"""The drawings of the report, as SVG; colours are classes of the style sheet, so that they follow light and dark."""

import math
from collections.abc import Sequence

from mote_runtime.profile import units
from mote_runtime.profile.report.markup import Child, Markup, svg, tag
from mote_runtime.profile.statistics import percentile

WIDTH = 640.0
_LEFT, _RIGHT = 56.0, 12.0
_MAX_POINTS = 400


def axis_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def latency_histogram(values: Sequence[float], marks: Sequence[int], low: float, high: float, series: int) -> Markup:
    """Inter-token latencies in ms from `low` to `high`; what is beyond is counted in the last bar, `marks` are percentiles."""
    height, base, bins = 150.0, 116.0, 48
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += 1
    most, width = max(counts), (WIDTH - _LEFT - _RIGHT) / bins
    children: list[Child] = [_horizontal_axis(low, high, base, "ms")]
    for index, count in enumerate(counts):
        if count:
            tall = max(1.5, (base - 26) * count / most)
            begin = low + (high - low) * index / bins
            title = tag("title", f"{count} of {len(values)} from {begin:.3g} ms on")
            bar = tag(
                "rect",
                title,
                x=_LEFT + index * width + 0.5,
                y=base - tall,
                width=width - 1,
                height=tall,
                rx=1.5,
                class_=f"s{series}",
            )
            children.append(bar)
    taken = -math.inf
    for mark in marks:
        value = percentile(values, mark)
        x = _LEFT + (min(value, high) - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)
        children.append(tag("line", x1=x, x2=x, y1=20, y2=base, class_="mark"))
        label_x = max(x, taken + 92)
        anchor = "end" if label_x > WIDTH - 80 else "start"
        if anchor == "start" or label_x - taken >= 92:
            children.append(
                tag(
                    "text",
                    f"p{mark} {units.figure(value, 'ms')}",
                    x=label_x + (3 if anchor == "start" else -3),
                    y=28 if anchor == "end" and label_x - taken < 184 else 14,  # below the one that it would lie upon
                    class_="note",
                    text_anchor=anchor,
                )
            )
        taken = label_x
    return svg(WIDTH, height, children, label="distribution of inter-token latency")


def _horizontal_axis(low: float, high: float, y: float, unit: str) -> list[Child]:
    children: list[Child] = [tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="axis")]
    for value in axis_ticks(low, high, 6):
        x = _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)
        children.append(tag("line", x1=x, x2=x, y1=y, y2=y + 4, class_="axis"))
        children.append(tag("text", f"{value:g}", x=x, y=y + 17, class_="tick", text_anchor="middle"))
    children.append(tag("text", unit, x=WIDTH - _RIGHT, y=y + 31, class_="tick", text_anchor="end"))
    return children


def stacked_bar(parts: Sequence[tuple[str, float, str]], total: float) -> Markup:
    """One bar of the width of the page; `parts` are (name, value, class)."""
    height, x = 26.0, 0.0
    children: list[Child] = []
    for name, value, style in parts:
        width = WIDTH * value / total if total else 0
        if width > 0:
            title = tag("title", f"{name}: {units.figure(value, 'ms')}, {units.share(value / total)}")
            children.append(tag("rect", title, x=x, y=0, width=max(width - 0.8, 0.2), height=height, class_=style))
            if width > 7.2 * len(name) + 10 and style.startswith("s"):
                children.append(tag("text", name, x=x + width / 2, y=17, class_="on-bar", text_anchor="middle"))
        x += width
    return svg(WIDTH, height, children, label="share of each operator")


def memory_chart(samples: Sequence[tuple[float, int, int]], stages: Sequence[tuple[str, float]]) -> Markup:
    """Anonymous and file-backed bytes over ms, one upon the other; `stages` are (name, ms) of vertical lines."""
    height, base, top = 210.0, 176.0, 22.0
    begin, end = samples[0][0], max(samples[-1][0], samples[0][0] + 1)
    most = max(1.0, *(anonymous + file for _, anonymous, file in samples)) * 1.04
    points = _thin(samples)

    def x(when: float) -> float:
        return _LEFT + (when - begin) / (end - begin) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return base - value / most * (base - top)

    unit, name = (1 << 30, "GiB") if most > 2 << 30 else (1 << 20, "MiB")
    children: list[Child] = []
    for value in axis_ticks(0, most / unit, 4):
        children.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y(value * unit), y2=y(value * unit), class_="grid"))
        children.append(tag("text", f"{value:g}", x=_LEFT - 6, y=y(value * unit) + 4, class_="tick", text_anchor="end"))
    children.append(tag("text", name, x=_LEFT - 6, y=12, class_="tick", text_anchor="end"))
    lower = [(x(when), y(anonymous)) for when, anonymous, _ in points]
    upper = [(x(when), y(anonymous + file)) for when, anonymous, file in points]
    floor = [(x(when), base) for when, _, _ in points]
    children.append(tag("path", d=_area(upper, lower), class_="file"))
    children.append(tag("path", d=_area(lower, floor), class_="anonymous"))
    taken = -math.inf
    for stage, when in stages:
        place = x(when)
        children.append(tag("line", x1=place, x2=place, y1=top, y2=base, class_="mark"))
        if place - taken > 7 * len(stage) and place < WIDTH - 60:
            children.append(tag("text", stage, x=place + 3, y=14, class_="note"))
            taken = place
    children.append(_horizontal_axis(0, (end - begin) / 1e3, base, "s"))
    return svg(WIDTH, height, children, label="resident memory over time")


def _thin(samples: Sequence[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """At most so many points, the greatest of each group, so that no peak is lost."""
    group = max(1, math.ceil(len(samples) / _MAX_POINTS))
    groups = [samples[start : start + group] for start in range(0, len(samples), group)]
    return [(each[0][0], max(s[1] for s in each), max(s[2] for s in each)) for each in groups] + [tuple(samples[-1])]  # type: ignore[list-item]


def _area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]]) -> str:
    outline = [*upper, *reversed(lower)]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in outline) + "Z"


def heat_map(rows: Sequence[Sequence[int]], layers: Sequence[int]) -> Markup:
    """Tokens of each expert (columns) by layer (rows); the colour is the share of the layer's tokens."""
    columns = max(map(len, rows))
    cell_width = min(120.0, (WIDTH - _LEFT - _RIGHT) / columns)
    cell_height = 26.0 if len(rows) <= 12 else 18.0
    height = 26 + cell_height * len(rows)
    children: list[Child] = []
    for column in range(columns):
        if columns <= 24 or column % 8 == 0:
            children.append(
                tag(
                    "text",
                    f"{column}",
                    x=_LEFT + (column + 0.5) * cell_width,
                    y=16,
                    class_="tick",
                    text_anchor="middle",
                )
            )
    for index, (row, layer) in enumerate(zip(rows, layers, strict=True)):
        top = 24 + index * cell_height
        children.append(
            tag("text", f"layer {layer}", x=_LEFT - 6, y=top + cell_height / 2 + 4, class_="tick", text_anchor="end")
        )
        total = sum(row)
        for column, tokens in enumerate(row):
            part = tokens / total if total else 0.0
            title = tag("title", f"layer {layer}, expert {column}: {tokens} of {total} tokens, {units.share(part)}")
            cell = {"x": _LEFT + column * cell_width, "y": top, "width": cell_width - 2, "height": cell_height - 2}
            children.append(tag("rect", class_="cell-back", rx=3, **cell))
            children.append(tag("rect", title, class_="cell", rx=3, fill_opacity=round(part**0.7, 3), **cell))
            if cell_width > 26:
                style = "cell-text strong" if part > 0.5 else "cell-text"
                children.append(
                    tag(
                        "text",
                        tokens,
                        x=_LEFT + (column + 0.5) * cell_width - 1,
                        y=top + cell_height / 2 + 3,
                        class_=style,
                        text_anchor="middle",
                    )
                )
    return svg(WIDTH, height, children, label="tokens of each expert by layer")


def share_bar(part: float, style: str) -> Markup:
    """A small bar of a share of the limit, 1 being the whole width."""
    title = tag("title", units.share(part))
    filled = tag("rect", title, x=0, y=0, width=100 * min(part, 1), height=8, rx=2, class_=style)
    over = tag("path", d="M93 0 L100 4 L93 8Z", class_="over") if part > 1 else None
    return svg(
        100,
        8,
        tag("rect", x=0, y=0, width=100, height=8, rx=2, class_="cell-back"),
        filled,
        over,
        label=units.share(part),
    )
