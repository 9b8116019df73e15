"""Find and replace in captions, plain or by regular expression."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from ..errors import AtelierError, require

LONGEST_CAPTION = 5000
"""Characters a regular expression is tried on; the work may grow with their square, or worse."""
MOST_SECONDS = 60.0
"""A regular expression may take for all captions together."""

REPEAT = r"(?:[+*]|\{\d+,\})"
REPEATED_REPEAT = re.compile(
    rf"(?<!\\)\((?:\?:|\?P<\w+>)?(?:\\.|\[[^\]]+\]|[^\\()\[\]|*+?{{}}]){REPEAT}\??\){REPEAT}"
)
"""``(a+)+`` and its kin: on a text that does not match they try every way to cut it up, 2ⁿ of
them. Less plain ones are not recognised; Python cannot stop a search that has begun."""


def replacement(find: str, replace_with: str, use_regex: bool) -> Callable[[str], str]:
    """What replaces every ``find`` in a caption; the result is one line.

    Args:
        use_regex: ``find`` is a regular expression, searched in the whole caption, and
            ``replace_with`` may take groups of it (``\\1``, ``\\g<name>``).

    Raises:
        AtelierError: a widget holds no valid expression. The result raises it for a caption that
            is too long, or when the search takes too long.
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

    def __init__(self, pattern: re.Pattern[str], replace_with: str) -> None:
        self.pattern, self.replace_with, self.seconds = pattern, replace_with, 0.0

    def __call__(self, text: str) -> str:
        require(
            len(text) <= LONGEST_CAPTION,
            f'find: the caption "{text[:60]} …" has {len(text)} characters, and a regular '
            f"expression is tried on {LONGEST_CAPTION} at most, since it could take forever. "
            "Shorten the caption, or turn use_regex off.",
        )
        begin = time.perf_counter()
        found = self.pattern.sub(self.replace_with, text)
        self.seconds += time.perf_counter() - begin
        require(
            self.seconds <= MOST_SECONDS,
            f'find: "{self.pattern.pattern}" takes more than {MOST_SECONDS:g} s. Make it simpler: '
            "fewer * and + beside each other.",
        )
        return found


def _compiled(find: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(find)
    except (re.error, OverflowError, RecursionError) as error:
        raise AtelierError(
            f'find is "{find}", which is no regular expression: {_where(error)}. Mend it, or turn '
            "use_regex off to find it as it is written."
        ) from error
    nested = REPEATED_REPEAT.search(find)
    if nested:
        raise AtelierError(
            f'find is "{find}": "{nested[0]}" at character {nested.start() + 1} repeats what is '
            "repeated already, which could take forever. One + or * is enough."
        )
    return pattern


def _check_template(pattern: re.Pattern[str], replace_with: str) -> None:
    try:
        pattern.sub(replace_with, "")
    except (re.error, IndexError) as error:
        raise AtelierError(
            f'replace_with is "{replace_with}", which does not fit find: {_where(error)}. \\1 is '
            "the first group in brackets; a backslash itself is \\\\."
        ) from error


def _where(error: Exception) -> str:
    if isinstance(error, re.error) and error.pos is not None:
        return f"{error.msg} at character {error.pos + 1}"
    return str(error.args[0])
