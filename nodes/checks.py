"""Widget values are judged before the queue starts, by the same rules the engine applies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..training.errors import AtelierError


def verdict(build: Callable[..., Any], *args: Any, **kwargs: Any) -> bool | str:
    """True, or what is wrong with the values, for a node's ``validate_inputs``.

    A linked input has no value yet (None): then everything is judged when the node runs.
    """
    if any(value is None for value in (*args, *kwargs.values())):
        return True
    try:
        build(*args, **kwargs)
    except AtelierError as error:
        return str(error)
    return True
