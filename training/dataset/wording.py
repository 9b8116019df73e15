"""Numbers and names in sentences."""

from __future__ import annotations

from .buckets import Size

LONGEST_QUOTE = 120
"""Characters."""


def count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def are(number: int, noun: str, what: str) -> str:
    return f"{count(number, noun)} {'is' if number == 1 else 'are'} {what}"


def have(number: int, noun: str, what: str) -> str:
    return f"{count(number, noun)} {'has' if number == 1 else 'have'} {what}"


def number(value: float) -> str:
    """Whole if it is, else one digit."""
    return f"{value:.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def size_text(size: Size) -> str:
    return f"{size[0]}×{size[1]}"


def quote(text: str, most: int = LONGEST_QUOTE) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
