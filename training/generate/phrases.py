"""Phrases with alternatives in them, as numbers: how many texts one stands for, and the n-th.

Counting comes before building, so that 10³⁰ texts are refused, or drawn from, without any of them
in memory. A joined phrase counts like digits of mixed radix, the last part fastest; alternatives
follow one another.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Protocol


class Phrase(Protocol):
    """Something that stands for ``count`` texts."""

    @property
    def count(self) -> int: ...

    def text(self, index: int) -> str:
        """The text of this number, ``0 <= index < count``."""

    def pick(self, rng: random.Random) -> int:
        """The number of a text, drawn by the weights of the alternatives."""


@dataclass(frozen=True, eq=False)
class Plain:
    """Text as it stands."""

    words: str
    count: int = 1

    def text(self, index: int) -> str:
        return self.words

    def pick(self, rng: random.Random) -> int:
        return 0


@dataclass(frozen=True, eq=False)
class Joined:
    """Phrases behind one another."""

    parts: Sequence[Phrase]

    @cached_property
    def count(self) -> int:
        return prod(part.count for part in self.parts)

    def indices(self, index: int) -> list[int]:
        """The number of each part in the text of this number."""
        found = []
        for part in reversed(self.parts):
            index, rest = divmod(index, part.count)
            found.append(rest)
        return found[::-1]

    def text(self, index: int) -> str:
        numbers = self.indices(index)
        return "".join(part.text(i) for part, i in zip(self.parts, numbers, strict=True))

    def pick(self, rng: random.Random) -> int:
        index = 0
        for part in self.parts:
            index = index * part.count + part.pick(rng)
        return index


@dataclass(frozen=True, eq=False)
class OneOf:
    """One of some phrases; at least one.

    Args:
        weights: how often each is drawn beside the others, all above 0.
    """

    options: Sequence[Phrase]
    weights: Sequence[float]

    @cached_property
    def starts(self) -> list[int]:
        """The first number of each option, and behind them the count."""
        return [0, *accumulate(option.count for option in self.options)]

    @property
    def count(self) -> int:
        return self.starts[-1]

    def option(self, index: int) -> tuple[int, int]:
        """(which option, the number in it)."""
        which = bisect_right(self.starts, index) - 1
        return which, index - self.starts[which]

    def text(self, index: int) -> str:
        which, inner = self.option(index)
        return self.options[which].text(inner)

    def pick(self, rng: random.Random) -> int:
        which = draw(self._heights, rng)
        return self.starts[which] + self.options[which].pick(rng)

    @cached_property
    def _heights(self) -> list[float]:
        return list(accumulate(self.weights))


@dataclass(frozen=True, eq=False)
class SomeOf:
    """From ``low`` to ``high`` different ones of some phrases, in their order.

    Of ``ways[i][k]`` texts with k of the options from the i-th on, those with the i-th come first:
    ``ways[i][k] = count[i] · ways[i+1][k-1] + ways[i+1][k]``.
    """

    options: Sequence[Phrase]
    weights: Sequence[float]
    low: int
    high: int
    separator: str

    @cached_property
    def ways(self) -> list[list[int]]:
        rows = [[1] + [0] * self.high]
        for option in reversed(self.options):
            below = rows[-1]
            rows.append(
                [1, *(option.count * a + b for a, b in zip(below, below[1:], strict=False))]
            )
        return rows[::-1]

    @property
    def count(self) -> int:
        return sum(self.ways[0][self.low : self.high + 1])

    def text(self, index: int) -> str:
        wanted = self.low
        while index >= self.ways[0][wanted]:
            index -= self.ways[0][wanted]
            wanted += 1
        parts = []
        for i, option in enumerate(self.options):
            if wanted == 0:
                break
            below = self.ways[i + 1]
            if index < option.count * below[wanted - 1]:
                own, index = divmod(index, below[wanted - 1])
                parts.append(option.text(own))
                wanted -= 1
            else:
                index -= option.count * below[wanted - 1]
        return self.separator.join(parts)

    def pick(self, rng: random.Random) -> int:
        wanted = self.low + int(rng.random() * (self.high - self.low + 1))
        index = sum(self.ways[0][self.low : wanted])
        chosen = self._choose(wanted, rng)
        for i, option in enumerate(self.options):
            if wanted == 0:
                break
            below = self.ways[i + 1]
            if i in chosen:
                index += option.pick(rng) * below[wanted - 1]
                wanted -= 1
            else:
                index += option.count * below[wanted - 1]
        return index

    def _choose(self, wanted: int, rng: random.Random) -> set[int]:
        left = list(range(len(self.options)))
        chosen = set()
        for _ in range(wanted):
            heights = list(accumulate(self.weights[i] for i in left))
            chosen.add(left.pop(draw(heights, rng)))
        return chosen


def draw(heights: Sequence[float], rng: random.Random) -> int:
    """An index by its weight.

    Args:
        heights: the weights, summed up from the left.
        rng: only its ``random()`` is used, which Python promises to keep for a seed.
    """
    return min(bisect_right(heights, rng.random() * heights[-1]), len(heights) - 1)
