"""The one exception that is meant to be read by the person at the graph."""

from __future__ import annotations

import math


class AtelierError(ValueError):
    """Something a person can mend: names the widget or file, the value, and what to do."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`AtelierError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise AtelierError(message)


def require_number(name: str, value: float, low: float, high: float, advice: str) -> None:
    """Refuse a widget value that is not a finite number in ``[low, high]``.

    Raises:
        AtelierError: naming the widget, the value, the range and what people usually choose.
    """
    inside = math.isfinite(value) and low <= value <= high
    require(inside, f"{name} is {value}: it must be a number from {low:g} to {high:g}. {advice}")
