"""How much pictures look like reference pictures, without any model.

With the numbers of :mod:`.style_features` in units of the standard deviation of all pictures, the
references and the others, let m and v be mean and variance of each number over the n references,
v drawn towards 1 as if two more pictures had said so. Then

    w_k   ∝ (KL(N(m_k, v_k) ‖ N(0, 1)) + 0.02) / (numbers of that aspect),   Σ_k w_k = 1
    d(x)  = Σ_k w_k (x_k - m_k)² / v_k
    u(x)  = x̃ᵀ (C + 3)⁻¹ m̃,   x̃_k = x_k √(K w_k),  C the mean of x̃ x̃ᵀ over all pictures
    s(x)  = 4n/(n + 4) · u(x) - d(x)

A number in which the references are a kind of their own counts (Kullback & Leibler 1951); one in
which they are as mixed as all pictures, as the colours of many subjects are, hardly does. d is the
distance from the references; u, a ridge discriminant between them and everything, sees directions
that only several numbers together show. That the others hold more of the same kind does not matter
to the order (learning from positive and unlabelled examples: Elkan & Noto 2008, KDD).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from ..cache import TensorCache, digest_of
from ..dataset.analysis import IN_FLIGHT, Tick, working_size
from ..dataset.digests import ContentDigests
from ..dataset.fit import Placement
from ..dataset.pictures import Picture, fitted_pixels, open_picture
from .style_features import VERSION, Aspect, style_features

SIDES = (256, 128, 64)
"""Px; longest sides at which pictures are compared."""
MOST_SMALLER = 0.1
"""Share of pictures that may be smaller than that."""

PRIOR_PICTURES = 2.0
FLOOR = 0.02
RIDGE = 3.0
PULL, DOUBT = 4.0, 4.0
"""Factor of u, and the pictures at which half of it counts: few references look apart by chance."""

WHITE = (255, 255, 255)

Features = dict[Aspect, np.ndarray]


class Likeness(NamedTuple):
    """Of one picture to the references."""

    similarity: float
    """0..1; the picture in the middle of the set has 0.5."""
    distance: float
    """√d above; of the references themselves about 1."""


def common_side(references: Sequence[Picture], pictures: Sequence[Picture]) -> int:
    """Longest side, px, at which both kinds are measured: small pictures have no fine texture, and
    are not to be told apart by that."""
    sides = (_usual_side(kind) for kind in (references, pictures) if kind)
    return min(sides, default=SIDES[0])


def _usual_side(pictures: Sequence[Picture]) -> int:
    longest = sorted(max(picture.size) for picture in pictures)
    usual = longest[int(len(longest) * MOST_SMALLER)]
    return next((side for side in SIDES if side <= usual), SIDES[-1])


def features_of(
    pictures: Sequence[Picture | None],
    side: int,
    digests: ContentDigests,
    cache: TensorCache,
    tick: Tick,
) -> list[Features | None]:
    """Style of each picture, cached by its content; None stays None.

    Args:
        side: px; longer pictures are scaled down to it, transparent ones lie on white.
        tick: called after each picture; may raise to cancel.

    Raises:
        AtelierError: a file is broken.
    """
    return list(_features(pictures, side, digests, cache, tick))


def _features(
    pictures: Sequence[Picture | None],
    side: int,
    digests: ContentDigests,
    cache: TensorCache,
    tick: Tick,
) -> Iterator[Features | None]:
    """In order; decoding runs beside itself, the cache is touched by this thread alone."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for first in range(0, len(pictures), IN_FLIGHT):
            chunk = pictures[first : first + IN_FLIGHT]
            keys = [None if p is None else _key(p, side, digests) for p in chunk]
            known = [None if key is None else _known(key, cache) for key in keys]
            jobs = [
                None if p is None or found else pool.submit(_measured, p, side)
                for p, found in zip(chunk, known, strict=True)
            ]
            for key, found, job in zip(keys, known, jobs, strict=True):
                if job is not None:
                    found = job.result()
                    cache.write(
                        key, {aspect.value: torch.from_numpy(found[aspect]) for aspect in Aspect}
                    )
                yield found
                tick()
    finally:  # after Cancel nothing more is decoded
        pool.shutdown(cancel_futures=True)


def _key(picture: Picture, side: int, digests: ContentDigests) -> str:
    return digest_of("style", VERSION, side, digests.of(picture))


def _known(key: str, cache: TensorCache) -> Features | None:
    entry = cache.read(key)
    if entry is None:
        return None
    return {aspect: entry[0][aspect.value].numpy().copy() for aspect in Aspect}


def _measured(picture: Picture, side: int) -> Features:
    return style_features(_small(picture, side))


def _small(picture: Picture, side: int) -> np.ndarray:
    """[H, W, 3] uint8."""
    image = open_picture(picture)
    size = working_size(image.size, side)
    fitted = fitted_pixels(image, Placement(image.size, size, (0, 0), size), WHITE)
    return (fitted.numpy() * 255).round().astype(np.uint8)


def likeness(
    references: Sequence[Features], pictures: Sequence[Features | None]
) -> list[Likeness | None]:
    """Likeness of each picture to the references; None stays None.

    Args:
        references: at least one.
    """
    present = [features for features in pictures if features is not None]
    if not present:
        return [None] * len(pictures)
    wanted, others = _stack(references), _stack(present)
    everything = np.concatenate([wanted, others])
    spread = everything.std(axis=0)
    varies = spread > 1e-6
    if not varies.any():
        return [None if features is None else Likeness(0.5, 0.0) for features in pictures]
    centre, scale = everything.mean(axis=0)[varies], spread[varies]
    score, distance = _compared(
        (wanted[:, varies] - centre) / scale,
        (others[:, varies] - centre) / scale,
        _sizes(references[0])[varies],
    )
    found = map(Likeness, _around_middle(score).tolist(), np.sqrt(distance).tolist())
    return [None if features is None else next(found) for features in pictures]


def kind(wanted: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """m, v and w of the references, as at the top; each [K].

    Args:
        wanted: [n, K], in units of all pictures.
        sizes: [K] numbers in the aspect of each.
    """
    count = len(wanted)
    mean = wanted.mean(axis=0)
    scatter = np.square(wanted - mean).sum(axis=0)
    variance = (scatter + PRIOR_PICTURES) / (count - 1 + PRIOR_PICTURES)
    information = (mean**2 + variance - 1 - np.log(variance)) / 2
    weights = (information + FLOOR) / sizes
    return mean, variance, weights / weights.sum()


def _compared(
    wanted: np.ndarray, others: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """s and d of the others, as at the top.

    Args:
        wanted: [n, K], in units of all pictures.
        others: [N, K]
        sizes: [K] numbers in the aspect of each.
    """
    count, numbers = wanted.shape
    mean, variance, weights = kind(wanted, sizes)
    distance = (np.square(others - mean) / variance) @ weights
    scaling = np.sqrt(numbers * weights)
    everything = np.concatenate([wanted, others]) * scaling
    covariance = everything.T @ everything / len(everything)
    direction = np.linalg.solve(covariance + RIDGE * np.eye(numbers), mean * scaling)
    pull = PULL * count / (count + DOUBT)
    return pull * (others * scaling) @ direction - distance, distance


def _around_middle(score: np.ndarray) -> np.ndarray:
    """0..1: half at the median, a quarter and three quarters at the usual distance from it."""
    gap = score - np.median(score)
    usual = float(np.median(np.abs(gap))) or 1.0
    return (1 + gap / (usual + np.abs(gap))) / 2


def _stack(pictures: Sequence[Features]) -> np.ndarray:
    """[N, K] float64."""
    rows = [np.concatenate([features[aspect] for aspect in Aspect]) for features in pictures]
    return np.stack(rows).astype(np.float64)


def _sizes(features: Features) -> np.ndarray:
    """[K]: how many numbers there are of the aspect of each."""
    counts = [len(features[aspect]) for aspect in Aspect]
    return np.repeat(counts, counts)
