"""How far apart the pictures of a set are in the eyes of an image encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_COMPARED = 20_000
"""Pictures of which every pair is looked at; of more, every n-th."""

BLOCK = 1024
"""Rows of the similarity matrix that are there at once."""


@dataclass(frozen=True)
class Spread:
    """Cosine similarities of all pairs of pictures; places are indices into the embeddings."""

    spread: float
    """1 − the mean over all pairs: 0 = all alike."""
    alike: tuple[tuple[int, int, float], ...]
    """The most similar pairs, with their similarity."""
    outliers: tuple[tuple[int, float], ...]
    """The pictures that are farthest from the mean of all, with their similarity to it."""
    compared: int
    """Pictures among which pairs were looked for."""


def spread_of(
    embeddings: Tensor, most: int = 5, tick: Callable[[], None] = lambda: None
) -> Spread | None:
    """The spread of a set; None for fewer than two pictures.

    The mean over all pairs is exact at any size: for unit vectors it is (|Σe|² − n)/(n(n−1)).

    Args:
        embeddings: [N, D], one row a picture; any length but 0.
        most: how many pairs and outliers are named.
        tick: called after each block of rows; may raise to cancel.
    """
    count = len(embeddings)
    if count < 2:
        return None
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    total = unit.sum(dim=0, dtype=torch.float64)
    mean_pair = (float(total @ total) - count) / (count * (count - 1))
    to_mean = unit @ torch.nn.functional.normalize(total, dim=0).float()
    far = to_mean.argsort()[:most].tolist()
    step = -(-count // MOST_COMPARED)
    return Spread(
        max(0.0, 1 - mean_pair),
        _most_alike(unit[::step], step, most, tick),
        tuple((i, float(to_mean[i])) for i in far),
        len(unit[::step]),
    )


def _most_alike(
    unit: Tensor, step: int, most: int, tick: Callable[[], None]
) -> tuple[tuple[int, int, float], ...]:
    best: list[tuple[float, int, int]] = []
    for first in range(0, len(unit), BLOCK):
        rows = unit[first : first + BLOCK]
        columns, places = torch.arange(len(unit)), torch.arange(first, first + len(rows))
        once = columns > places[:, None]  # each pair once, none with itself
        similar = (rows @ unit.T).masked_fill(~once, -torch.inf)
        values, pairs = similar.flatten().topk(min(most, int(once.sum())))
        for value, pair in zip(values.tolist(), pairs.tolist(), strict=True):
            row, column = divmod(pair, len(unit))
            best.append((value, (first + row) * step, column * step))
        best = sorted(best, key=lambda pair: (-pair[0], pair[1:]))[:most]
        tick()
    return tuple((i, j, value) for value, i, j in best)
