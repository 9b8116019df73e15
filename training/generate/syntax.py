r"""How alternatives are written, read into a :class:`Phrase`.

    {red|ginger}              one of them; {red|} is red or nothing; they may lie in one another
    {3::red|ginger}           red three times as often, where texts are drawn
    {2$$a|b|c} {1-2$$ and $$a|b|c}   some of them, joined by ", " or by what stands between the $$
    __colours__               a line of the wildcard file colours.txt
    \{ \} \| \__              plain characters

The same signs as dynamicprompts and ComfyUI's text boxes. The package itself is not used: it cannot
count, leaves a missing wildcard file in the text, and takes "50% grey", "$5" or "a # b" amiss.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..dataset.wording import quote
from ..errors import AtelierError
from .phrases import Joined, OneOf, Phrase, Plain, SomeOf

TOKEN = re.compile(
    r"\\(?P<plain>[{}|]|__)|(?P<sign>[{}|])"
    r"|__(?P<wildcard>[^\s_{}|\\](?:[^\s{}|\\]*?[^\s_{}|\\])?)__"
    r"|(?P<text>[^\\{}|_]+|.)",
    re.DOTALL,
)
RANGE = re.compile(r"(?P<low>\d{1,4})(?:-(?P<high>\d{1,4}))?\$\$(?:(?P<separator>[^{}|$]*)\$\$)?")
WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::")
MOST_DEPTH = 20
"""Braces and wildcard files within one another."""
MOST_TOGETHER = 32
"""Of how many options a {2$$…} may take at once."""


@dataclass(frozen=True, eq=False)
class Option:
    """One alternative, and how often it is drawn."""

    phrase: Phrase
    weight: float = 1.0


Lookup = Callable[[str, int], list[Option]]
"""(name of a wildcard file, depth at which it is read) -> its lines."""


def parse(text: str, lookup: Lookup, where: str, depth: int = 0) -> Phrase:
    """Read a line.

    Args:
        lookup: finds wildcard files.
        where: what the line is, for the messages.
        depth: of the wildcard file that the line is from; 0 = of none.

    Raises:
        AtelierError: it is not written as above, or a wildcard file is missing.
    """
    return _Parser(text, lookup, where, depth).line()


def parse_option(text: str, lookup: Lookup, where: str, depth: int = 0) -> Option:
    """Read a line that may begin with a weight, as :func:`parse`."""
    parser = _Parser(text, lookup, where, depth)
    weight = parser.weight()
    return Option(parser.line(), weight)


def one_of(options: Sequence[Option]) -> Phrase:
    if len(options) == 1:
        return options[0].phrase
    return OneOf([o.phrase for o in options], [o.weight for o in options])


class _Parser:
    """Goes through one line once, from ``place`` on."""

    def __init__(self, text: str, lookup: Lookup, where: str, depth: int) -> None:
        self.text, self.lookup, self.where, self.depth = text, lookup, where, depth
        self.place = 0

    def line(self) -> Phrase:
        phrase = self.sequence(inside=False)
        self.expect(
            self.place == len(self.text),
            "a closing brace that nothing opens. Write \\ before a plain one",
        )
        return phrase

    def sequence(self, inside: bool) -> Phrase:
        """Up to the | or } that ends it, which is left; outside braces | is plain."""
        parts: list[Phrase] = []
        while token := TOKEN.match(self.text, self.place):
            if token["sign"] == "}" or (token["sign"] == "|" and inside):
                break
            self.place = token.end()
            if token["sign"] == "{":
                parts.append(self.group())
            elif token["wildcard"]:
                parts.append(one_of(self.lookup(token["wildcard"], self.depth + 1)))
            else:
                parts.append(Plain(token["plain"] or token[0]))
        return parts[0] if len(parts) == 1 else Joined(parts)

    def group(self) -> Phrase:
        """Behind a {, up to and with its }."""
        self.depth += 1
        self.expect(self.depth <= MOST_DEPTH, "braces too deep in each other")
        together = RANGE.match(self.text, self.place)
        self.place = together.end() if together else self.place
        options = self.options()
        self.depth -= 1
        return self.some_of(options, together) if together else one_of(options)

    def options(self) -> list[Option]:
        """Equal ones are one, with their weights together."""
        found: dict[str, Option] = {}
        end = "|"
        while end == "|":
            weight, begin = self.weight(), self.place
            phrase = self.sequence(inside=True)
            source = self.text[begin : self.place]
            earlier = found[source].weight if source in found else 0.0
            found[source] = Option(phrase, weight + earlier)
            end = self.text[self.place : self.place + 1]
            self.expect(end != "", "a brace that is never closed. Write \\ before a plain one")
            self.place += 1
        lines = TOKEN.fullmatch(next(iter(found))) if len(found) == 1 else None
        if lines and lines["wildcard"]:
            return self.lookup(lines["wildcard"], self.depth + 1)
        return list(found.values())

    def some_of(self, options: list[Option], together: re.Match[str]) -> Phrase:
        low = int(together["low"])
        high = int(together["high"] or low)
        separator = ", " if together["separator"] is None else together["separator"]
        self.expect(
            low <= high <= min(len(options), MOST_TOGETHER),
            f"{together[0]} before {len(options)} options. The first number cannot be above "
            f"the second, nor the second above the options or {MOST_TOGETHER}",
        )
        return SomeOf(
            [o.phrase for o in options], [o.weight for o in options], low, high, separator
        )

    def weight(self) -> float:
        found = WEIGHT.match(self.text, self.place)
        if not found:
            return 1.0
        self.place = found.end()
        weight = float(found[1])
        self.expect(weight > 0, "the weight 0. Leave out what is never to be drawn")
        return weight

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            raise AtelierError(f"{self.where} has {what}: {quote(self.text)}")
