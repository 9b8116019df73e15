"""Find and replace in captions, plain or by regular expression."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..errors import AtelierError, needed_package, require

MOST_SECONDS = 20.0
"""A regular expression may take for all captions together: ``(a+)+`` and its kin try every way to
cut up a text that does not match, 2ⁿ of them, and a graph can come from anyone."""


def replacement(find: str, replace_with: str, use_regex: bool) -> Callable[[str], str]:
    """What replaces every ``find`` in a caption; the result is one line.

    Args:
        use_regex: ``find`` is a regular expression, searched in the whole caption, and
            ``replace_with`` may take groups of it (``\\1``, ``\\g<name>``).

    Raises:
        AtelierError: a widget holds no valid expression. The result raises it when the search
            takes too long.
    """
    require(
        find != "" or replace_with == "",
        f'replace_with is "{replace_with}", but find is empty. Say what is to be replaced.',
    )
    if not use_regex:
        return lambda text: text.replace(find, replace_with) if find else text
    pattern = _compiled(find)
    _check_template(pattern, replace_with)
    return _Substitution(pattern, replace_with)


class _Substitution:
    """Replaces in one caption after another and counts the seconds."""

    def __init__(self, pattern: Any, replace_with: str) -> None:
        self.pattern, self.replace_with, self.left = pattern, replace_with, MOST_SECONDS

    def __call__(self, text: str) -> str:
        begin = time.perf_counter()
        try:
            # Concurrent: a search that takes long must not hold up the server.
            found = self.pattern.sub(
                self.replace_with, text, timeout=max(self.left, 1e-3), concurrent=True
            )
        except TimeoutError as error:
            raise AtelierError(
                f'find: "{self.pattern.pattern}" takes more than '
                f"{MOST_SECONDS:g} s. Make it simpler: fewer * and + beside each other or inside "
                "one another."
            ) from error
        self.left -= time.perf_counter() - begin
        return found


def _regex() -> ModuleType:
    """Python's own engine cannot be stopped once it searches; this one can."""
    return needed_package("regex", "use_regex")


def _compiled(find: str) -> Any:
    try:
        return _regex().compile(find)
    except (_regex().error, OverflowError, RecursionError) as error:
        raise AtelierError(
            f'find is "{find}", which is no regular expression: {_where(error)}. Mend it, or turn '
            "use_regex off to find it as it is written."
        ) from error


def _check_template(pattern: Any, replace_with: str) -> None:
    try:
        # The engine reads it at the first match; this pattern always has one.
        _regex().compile(f"{pattern.pattern}\n|").sub(replace_with, "")
    except (_regex().error, IndexError) as error:
        raise AtelierError(
            f'replace_with is "{replace_with}", which does not fit find: {_where(error)}. \\1 is '
            "the first group in brackets; a backslash itself is \\\\."
        ) from error


def _where(error: Exception) -> str:
    place = getattr(error, "pos", None)
    text = getattr(error, "msg", None) or str(error.args[0])
    return text if place is None else f"{text} at character {place + 1}"
