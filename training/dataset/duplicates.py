"""Pictures that are there twice: the same file, or nearly the same picture.

Two pictures are near when their perceptual hashes differ in at most 7 of 64 bits and their colours,
in 8×8 patches, by at most 16 of 255 on average: the hash alone takes a red flag for a green one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

from .analysis import Measurements

MAX_BITS = 7
MAX_COLOUR = 16.0
QUARTERS = 4
QUARTER_BITS = 16

Group = tuple[int, ...]
"""Indices into the pictures; the first is the one to keep."""


def same_files(digests: Sequence[str | None]) -> list[Group]:
    """Pictures of equal content, at least two a group; None is equal to nothing."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, digest in enumerate(digests):
        if digest is not None:
            places[digest].append(i)
    return [tuple(group) for group in places.values() if len(group) > 1]


def near_groups(
    pictures: Sequence[Measurements | None], tick: Callable[[], None] = lambda: None
) -> list[Group]:
    """Groups of near pictures, at least two each.

    In order, each picture joins the first earlier one that it is near to and that leads a group,
    or else leads one of its own. So everyone in a group is near its first, chains of small
    differences do not run together, and of the first ones no two are near: keep those, and nothing
    is there twice. Blank pictures are left out, since their hashes are chance.

    Two hashes that differ in at most 7 bits differ in at most one bit in one of four quarters
    (pigeonhole), so only pictures that share a quarter up to one bit are compared.

    Args:
        pictures: None = left out.
        tick: called after each picture; may raise to cancel.
    """
    groups: dict[int, list[int]] = {}
    leaders = _Leaders(pictures)
    for i, picture in enumerate(pictures):
        if picture is not None and not picture.blank:
            leader = leaders.near(i)
            groups.setdefault(i if leader is None else leader, []).append(i)
            if leader is None:
                leaders.add(i)
        tick()
    return [tuple(group) for group in groups.values() if len(group) > 1]


class _Leaders:
    """Pictures that lead a group, to be found by quarters of their hashes.

    Equal hashes are looked at once and colours all together, so that neither thousands of copies
    nor thousands of colourings of one shape take thousands of comparisons each.
    """

    def __init__(self, pictures: Sequence[Measurements | None]) -> None:
        self.hashes = [0 if picture is None else picture.phash for picture in pictures]
        self.colours = np.zeros((len(pictures), 8 * 8 * 3), np.int16)
        for row, picture in zip(self.colours, pictures, strict=True):
            row[:] = 0 if picture is None else picture.colours.reshape(-1)
        self.of_hash: dict[int, list[int]] = defaultdict(list)
        self.of_quarter: list[dict[int, set[int]]] = [defaultdict(set) for _ in range(QUARTERS)]

    def add(self, i: int) -> None:
        self.of_hash[self.hashes[i]].append(i)
        for known, quarter in zip(self.of_quarter, _quarters(self.hashes[i]), strict=True):
            known[quarter].add(self.hashes[i])

    def near(self, i: int) -> int | None:
        """The first that is near to picture ``i``."""
        similar = [j for phash in self._similar(self.hashes[i]) for j in self.of_hash[phash]]
        if not similar:
            return None
        difference = np.abs(self.colours[similar] - self.colours[i]).mean(axis=1)
        close = np.asarray(similar)[difference <= MAX_COLOUR]
        return int(close.min()) if close.size else None

    def _similar(self, phash: int) -> set[int]:
        """Known hashes that differ in few bits."""
        rivals = chain.from_iterable(
            known.get(key, ())
            for known, quarter in zip(self.of_quarter, _quarters(phash), strict=True)
            for key in _within_one_bit(quarter)
        )
        return {rival for rival in rivals if (phash ^ rival).bit_count() <= MAX_BITS}


def _quarters(phash: int) -> list[int]:
    return [phash >> (QUARTER_BITS * i) & ((1 << QUARTER_BITS) - 1) for i in range(QUARTERS)]


def _within_one_bit(quarter: int) -> Iterator[int]:
    yield quarter
    for bit in range(QUARTER_BITS):
        yield quarter ^ (1 << bit)
