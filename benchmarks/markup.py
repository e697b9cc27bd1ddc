"""HTML and SVG elements as text that is escaped where it is made, so that none can be forgotten."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Final

_VOID: Final = frozenset({"br", "img", "link", "meta"})
_BLOCKS: Final = frozenset(
    {"article", "body", "caption", "div", "dl", "figure", "footer", "h1", "h2", "h3", "head", "header"}
    | {"html", "li", "main", "meta", "nav", "ol", "p", "section", "style", "svg", "table", "tbody"}
    | {"thead", "title", "tr", "ul"}
)
_NO_CHARACTERS: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already; any other text is escaped when it becomes a part of it."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """Return plain text as HTML; what HTML has no character for becomes the replacement character."""
    return Markup(html.escape(_NO_CHARACTERS.sub("\ufffd", text), quote=True))


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """Return an element.

    Args:
        tag: Its name.
        children: Markup as it is, any other text escaped.
        attributes: By name: "class_" for class, "aria_label" for aria-label; None leaves one out.
    """
    written = "".join(
        f' {name.removesuffix("_").replace("_", "-")}="{escaped(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    end = "\n" if tag in _BLOCKS else ""
    if tag in _VOID:
        return Markup(f"<{tag}{written}>{end}")
    return Markup(f"<{tag}{written}>{joined(children)}</{tag}>{end}")


def joined(parts: Iterable[str]) -> Markup:
    """Return parts one after the other, each escaped unless it is markup."""
    return Markup("".join(part if isinstance(part, Markup) else escaped(part) for part in parts))


def _number(value: str | float) -> str:
    """An attribute's value; a coordinate in tenths of a pixel."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
