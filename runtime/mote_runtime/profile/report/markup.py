"""Builds HTML and SVG: whatever comes from outside is escaped here, in one place."""

import html
from collections.abc import Iterable


class Markup(str):
    """Text that is markup already; only this module makes it."""

    __slots__ = ()


Child = str | int | float | Iterable["Child"] | None
_VOID = frozenset({"meta", "br", "hr"})


def render_child(child: Child) -> str:
    """A child as markup: plain text escaped, markup as it is, several one after the other, None as nothing."""
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return html.escape(str(child))
    return "".join(map(render_child, child))


def tag(element: str, /, *children: Child, **attributes: str | int | float | None) -> Markup:
    """An element. Attribute names: a trailing underscore is dropped, others become hyphens; None leaves one out."""
    parts = [element]
    for key, value in attributes.items():
        if value is None:
            continue
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(text)}"')
    opening = "<" + " ".join(parts) + ">"
    return Markup(opening if element in _VOID else f"{opening}{render_child(children)}</{element}>")


def join(*children: Child) -> Markup:
    """Elements one after the other."""
    return Markup(render_child(children))


def trusted(text: str) -> Markup:
    """Text of this package that is markup, such as its style sheet; never anything from outside."""
    return Markup(text)


def svg(width: float, height: float, *children: Child, label: str) -> Markup:
    """A drawing that scales with the page; `label` is what a screen reader says."""
    return tag(
        "svg",
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        preserveAspectRatio="xMidYMid meet",
    )
