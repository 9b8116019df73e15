"""What can be said of the pictures of a LoRA beside those of the base and the training pictures.

All of it rests on distances of pictures, d(a, b) = ½|a - b|² of their vectors: 1 - cosine in the
eyes of an image encoder, and about 1 for two training pictures by their colours, edges and texture.
With x the pictures of the LoRA, b those of the base for the same prompts and seeds, t the training
pictures, and D(x) the logarithm of the mean distance of x to all of them:

    gain       (mean D(b) - mean D(x)) / (mean D(b) - mean D(t)),  t without itself in D(t):
               0 = as far as the base, 1 = as near as training pictures are to each other
    kept       how often the base's picture of the same prompt is nearer to x than that of another
               prompt, once the mean of either kind is taken out: 1 = each picture still shows what
               was asked for, ½ = it could be of any prompt (the area under a ROC curve)
    diversity  mean d of two pictures, over the same of the base

A copy is clearly nearer to one training picture than any two training pictures are to each other,
and than the base comes to any of them by chance. To judge nearest neighbours against each other so
is in the spirit of Carlini et al. 2023, arXiv:2301.13188, and Somepalli et al. 2023,
arXiv:2212.03860.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SAME_PICTURE = 0.25
"""Training pictures nearer than this, in units of the usual nearest neighbour, are there twice."""
CHANCE = 0.5
"""Of ``kept``, when pictures tell nothing of their prompts."""
CLEARLY = 0.7
"""Of the least distance of pictures that are no copies, which scatters."""
LEAST_ROOM = math.log(1.05)
"""The base's pictures are less than a twentieth further away: then there is no way to go."""
LEAST_DISTANCE = 1e-9


class Estimate(NamedTuple):
    """A mean over pictures."""

    value: float
    error: float
    """Standard error; infinite of one picture."""

    @property
    def is_clear(self) -> bool:
        """More than two standard errors above 0."""
        return self.value > 2 * self.error


class Pair(NamedTuple):
    """A picture and its nearest training picture, both by their indices."""

    picture: int
    training: int
    nearness: float
    """Its distance, over the largest at which it would be a copy: below 1 it is one."""


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error of numbers, one a picture."""
    if len(values) < 2:
        return Estimate(float(values.mean()), math.inf)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[N, M] half squared distances of [N, D] and [M, D]."""
    squares = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1)
    return np.maximum(0.0, squares / 2 - one @ other.T)


def room(base: np.ndarray, training: np.ndarray) -> float | None:
    """How much nearer to the training pictures the base's could come; None when it is there, or
    there is only one training picture.

    Args:
        base, training: vectors [N, D] and [M, D].
    """
    if len(training) < 2:
        return None
    among = estimate(_log(distances(training, training).sum(axis=1) / (len(training) - 1)))
    far = estimate(_far(base, training))
    way = Estimate(far.value - among.value, math.hypot(far.error, among.error))
    return way.value if way.is_clear and way.value > LEAST_ROOM else None


def gains(pictures: np.ndarray, base: np.ndarray, training: np.ndarray, way: float) -> np.ndarray:
    """[N] gain of each picture over the base's of the same prompt and seed.

    Args:
        way: as :func:`room` gives it.
    """
    return (_far(base, training) - _far(pictures, training)) / way


def _far(pictures: np.ndarray, training: np.ndarray) -> np.ndarray:
    """[N] D of each."""
    return _log(distances(pictures, training).mean(axis=1))


def _log(apart: np.ndarray) -> np.ndarray:
    """So that one picture of another kind does not outweigh all others."""
    return np.log(np.maximum(apart, LEAST_DISTANCE))


def kept(pictures: np.ndarray, base: np.ndarray, prompts: Sequence[int]) -> Estimate | None:
    """How much of what was asked for is still to be told from the pictures; None for one prompt.

    Args:
        pictures, base: vectors [N, D], in the same order.
        prompts: [N], which of them each is of.
    """
    asked = np.asarray(prompts)
    kinds = np.unique(asked)
    if len(kinds) < 2:
        return None
    apart = distances(pictures - pictures.mean(axis=0), base - base.mean(axis=0))
    means = np.stack([apart[:, asked == kind].mean(axis=1) for kind in kinds], axis=1)  # [N, kinds]
    own = means[np.arange(len(asked)), np.searchsorted(kinds, asked)][:, None]
    # Its own prompt counts as half, as a tie: the mean over the others is what is wanted.
    wins = (means > own).sum(axis=1) + ((means == own).sum(axis=1) - 1) / 2
    return estimate(wins / (len(kinds) - 1))


def variety(pictures: np.ndarray) -> float:
    """Mean distance of two pictures; vectors [N, D]."""
    count = len(pictures)
    return float(distances(pictures, pictures).sum() / (count * (count - 1)))


def copy_distance(training: np.ndarray, base: np.ndarray) -> float:
    """The distance to a training picture below which a picture is a copy of it: clearly less than
    the least at which a training picture has its nearest neighbour, or a picture of the base its
    own.

    Pictures that are in the training set twice say nothing of that, and are passed over.

    Args:
        training: [M, M] distances among the training pictures.
        base: [N, M] distances of the base's pictures to them.
    """
    found = [float(base.min())] if base.size else []
    if len(training) > 1:
        others = training + np.diag(np.full(len(training), np.inf))
        nearest = others.min(axis=1)
        usual = float(np.median(nearest))
        single = nearest[nearest > SAME_PICTURE * usual]
        found += [float(single.min())] if single.size else []
    return CLEARLY * min(found, default=0.0)


def nearest_pairs(measured: Sequence[tuple[np.ndarray, float]]) -> list[Pair]:
    """The nearest training picture of each picture, in the eyes of all measures at once: the one
    for which the largest of the distances, each over its copy distance, is smallest.

    Args:
        measured: [N, M] distances to the training pictures and their copy distance, one or more.
    """
    shares = [
        apart / least if least > 0 else np.full_like(apart, np.inf) for apart, least in measured
    ]
    worst = np.maximum.reduce(shares)
    nearest = worst.argmin(axis=1)
    return [Pair(i, int(t), float(worst[i, t])) for i, t in enumerate(nearest)]
