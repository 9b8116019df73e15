"""Text of unknown content in charts: whatever script it is in, and however long it is."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

from ..errors import needed_package

CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "SimHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
)
CJK_FILES = re.compile(r"(CJK|SourceHanSans|msyh|simhei|PingFang|Hiragino|wqy)[^/\\]*$", re.I)
SYMBOL_FONTS = ("Noto Emoji", "Segoe UI Emoji", "Segoe UI Symbol", "Symbola", "Noto Sans Symbols2")


def any_text() -> dict[str, Any]:
    """How matplotlib is to set such a text: in any font that has it, and ``$`` is no formula."""
    return {"fontfamily": list(_families()), "parse_math": False}


def fitted_text(text: str, most: int) -> str:
    """At most ``most`` columns a line, and only what :func:`drawable` leaves."""
    return "\n".join(_narrowed(drawable(line), most) for line in text.split("\n"))


def wrapped_text(text: str, most: int, lines: int) -> str:
    """At most ``lines`` lines of ``most`` columns, broken at spaces where there are some; the end
    of a text that is longer gives way. Only what :func:`drawable` leaves."""
    rest, found = drawable(" ".join(text.split())), []
    while rest and len(found) < lines:
        head = _prefix(rest, most)
        if head != rest:
            if len(found) == lines - 1:
                head = f"{_prefix(rest, most - 1)}…"
            elif " " in head and rest[len(head)] != " ":
                head = head[: head.rindex(" ")]
        found.append(head)
        rest = rest[len(head) :].lstrip()
    return "\n".join(found)


def drawable(text: str) -> str:
    """Characters that no font of this machine has as their code point, ``[1F98A]``; those that
    only change or join others are dropped."""
    known = _characters()
    return "".join(c if ord(c) in known else "" if _invisible(c) else f"[{ord(c):X}]" for c in text)


def _narrowed(text: str, most: int) -> str:
    """The middle of a text that is too wide gives way; Chinese characters are two columns wide."""
    if sum(map(_columns, text)) <= most:
        return text
    head, tail = _prefix(text, most * 2 // 3), _prefix(text[::-1], most - most * 2 // 3 - 1)[::-1]
    return f"{head}…{tail}"


def _prefix(text: str, most: int) -> str:
    width = 0
    for place, character in enumerate(text):
        width += _columns(character)
        if width > most:
            return text[:place]
    return text


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Cc", "Mn")


@lru_cache(maxsize=1)
def _families() -> tuple[str, ...]:
    """Fonts of this machine, in the order in which a character is looked for in them."""
    manager = needed_package("matplotlib.font_manager", "The chart")
    fonts = manager.fontManager
    there = {entry.name for entry in fonts.ttflist}
    if there.isdisjoint(CJK_FONTS):  # its list is kept on disk and misses what came later
        for path in manager.findSystemFonts():
            if CJK_FILES.search(path):
                fonts.addfont(path)
        there = {entry.name for entry in fonts.ttflist}
    return ("DejaVu Sans", *(name for name in (*CJK_FONTS, *SYMBOL_FONTS) if name in there))


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    """Code points that one of the fonts can draw."""
    manager = needed_package("matplotlib.font_manager", "The chart")
    found: set[int] = set()
    for family in _families():
        found.update(manager.get_font(manager.findfont(family)).get_charmap())
    return frozenset(found)
