"""Widget values are judged before the queue starts, by the same rules the engine applies."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from ...training.errors import AtelierError

Choice = TypeVar("Choice", bound=Enum)


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


def choice(widget: str, value: str, kind: type[Choice]) -> Choice:
    """The member of ``kind`` that was chosen.

    Raises:
        AtelierError: there is no such choice; a value that comes over a link may be anything.
    """
    try:
        return kind(value)
    except ValueError as error:
        names = ", ".join(member.value for member in kind)
        raise AtelierError(f"{widget} is {value!r}: it must be one of {names}.") from error
