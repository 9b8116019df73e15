"""Arguments that people type: ``name=value name=value`` for a function, and rows of numbers.

They are held to the function's own signature, so that a typo is an error that names what there is
instead of a setting that does nothing.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import re
from collections.abc import Callable, Collection
from typing import Any

from ..errors import AtelierError, require

_PAIR = re.compile(
    r"""([A-Za-z_]\w*)\s*=\s*(\([^()]*\)|\[[^\[\]]*\]|"[^"]*"|'[^']*'|[^\s,;=]+)(?=[\s,;]|$)"""
)
_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf}


def parse_arguments(widget: str, text: str) -> dict[str, Any]:
    """``momentum=0.9, nesterov=True`` -> ``{"momentum": 0.9, "nesterov": True}``.

    Spaces, commas, semicolons or new lines part the pairs. A value is a number, ``True``,
    ``False``, ``None``, ``inf``, a tuple such as ``(0.9, 0.99)``, or a word.

    Raises:
        AtelierError: something is no pair, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for name, value in _PAIR.findall(text):
        require(name not in found, f"{widget}: {name} is given twice.")
        found[name] = _value(value)
    rest = re.sub(r"[\s,;]+", " ", _PAIR.sub(" ", text)).strip()
    require(
        rest == "",
        f'{widget}: "{rest}" is not of the form name=value. Write, for example, '
        "momentum=0.9 nesterov=True.",
    )
    return found


def parse_numbers(widget: str, text: str, example: str) -> float | tuple[float, ...] | None:
    """``0.9, 0.999`` -> two numbers, ``1e-8`` -> one, an empty text -> None.

    Raises:
        AtelierError: a part is no finite number.
    """
    parts = [part for part in re.split(r"[\s,;]+", text.strip().strip("()[]")) if part]
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        numbers = (math.nan,)
    require(
        all(math.isfinite(number) for number in numbers),
        f'{widget} is "{text}": write numbers such as {example}, or leave it empty.',
    )
    if not numbers:
        return None
    return numbers[0] if len(numbers) == 1 else numbers


def check_arguments(
    widget: str,
    owner: str,
    function: Callable[..., Any],
    given: dict[str, Any],
    elsewhere: Collection[str],
) -> None:
    """Hold arguments to the signature of the function that will get them.

    Args:
        widget: where they were typed, for the message.
        owner: what the function belongs to, e.g. "Prodigy", for the message.
        elsewhere: parameters that are set in another way and must not be typed.

    Raises:
        AtelierError: no such parameter (names those there are), or a value of the wrong kind.
    """
    known = parameters(function)
    free = sorted(known.keys() - set(elsewhere))
    for name, value in given.items():
        require(
            name not in elsewhere or name not in known,
            f"{widget}: {name} cannot be set here. Take it out; what decides it has a widget.",
        )
        if name not in known:
            near = difflib.get_close_matches(name, free, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            takes = f"It takes: {', '.join(free)}." if free else "It takes none."
            raise AtelierError(f"{widget}: {owner} has no argument {name}. {hint}{takes}")
        require(
            fits(known[name], value),
            f"{widget}: {name} is {value!r}; {owner} wants {_kind(known[name])}.",
        )


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Name -> default (``inspect.Parameter.empty``: there is none) of what can be given by name."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in signature if p.kind in by_name and p.name != "self"}


def fits(default: Any, value: Any) -> bool:
    """True when a value is of the kind of a parameter's default; None tells nothing of it."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, str):
        return isinstance(value, str)
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == len(default)
    return True


def _kind(default: Any) -> str:
    if isinstance(default, bool):
        return "True or False"
    if isinstance(default, int | float):
        return f"a number such as {default}"
    if isinstance(default, str):
        return f"a word such as {default}"
    return f"{len(default)} numbers such as {default}" if isinstance(default, tuple) else "anything"


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list) else value
