"""A picture in numbers: its style, the layout of its colours, and a small copy to be shown.

Layout: the picture as 20×20 px, of which a window of 16×16 is compared. With the mean of each
channel taken out and scaled to length 1, the product of two windows is the correlation of the
pictures; it is the greatest over 25 shifts of the other one and of its mirror image, so that a copy
is found that is moved by up to a tenth of its size:

    distance(x, t) = 1 - max over shifts and mirroring of  ⟨window(x), window(t)⟩

0 = the same picture, 1 = nothing in common. It is blind to brightness and contrast.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..curation.reference import SIDES, kind
from ..curation.style_features import Aspect, style_features
from ..dataset.analysis import working_size

GRID, WINDOW = 20, 16
SHIFTS = GRID - WINDOW + 1
THUMBNAIL = 128
"""Longer side of what is kept to be shown, px."""
KEPT = 256
"""Longer side of what an image encoder is shown later, px."""
FLAT = 2.0
"""Grey levels (RMS) below which a picture has no layout: a plain ground."""
LEAST_SPREAD = 1e-6


class Seen(NamedTuple):
    """One picture."""

    style: np.ndarray
    """[K] float64, as :mod:`training.curation.style_features` gives it."""
    layout: np.ndarray
    """[20, 20, 3] float32, 0..255."""
    small: np.ndarray
    """[h, w, 3] uint8, at most 128 px."""


def common_side(*sizes: tuple[int, int]) -> int:
    """Longest side at which pictures of these sizes have the same fine texture, px."""
    smallest = min(max(size) for size in sizes)
    return next((side for side in SIDES if side <= smallest), SIDES[-1])


def seen(pixels: np.ndarray, side: int) -> Seen:
    """Measure a picture.

    Args:
        pixels: [H, W, 3] uint8, sRGB.
        side: px; longer pictures are scaled down to it before their style is measured.
    """
    image = Image.fromarray(pixels)
    features = style_features(np.asarray(_at_most(image, side)))
    return Seen(
        np.concatenate([features[aspect] for aspect in Aspect]).astype(np.float64),
        np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX), np.float32),
        np.asarray(_at_most(image, THUMBNAIL)),
    )


def kept(pixels: np.ndarray) -> np.ndarray:
    """The picture at the size at which an image encoder is shown it."""
    return np.asarray(_at_most(Image.fromarray(pixels), KEPT))


class StyleSpace:
    """How far apart styles are, in what the training pictures are a kind of their own: the weights
    of :mod:`training.curation.reference`, with the base's pictures as the others. Half the square
    of a difference of vectors is about 1 for two training pictures. What a LoRA does to its own
    pictures has no part in the measure.

    Args:
        training, base: [N, K] and [M, K], as in :class:`Seen`.
    """

    def __init__(self, training: np.ndarray, base: np.ndarray) -> None:
        everything = np.concatenate([training, base])
        spread = everything.std(axis=0)
        self._varies = spread > LEAST_SPREAD * np.maximum(1, np.abs(everything).max(axis=0))
        self._centre = everything.mean(axis=0)[self._varies]
        self._spread = spread[self._varies]
        own = (training[:, self._varies] - self._centre) / self._spread
        _, variance, weights = kind(own, _aspect_sizes()[self._varies])
        self._scale = np.sqrt(weights / variance)

    def vectors(self, styles: np.ndarray) -> np.ndarray:
        """[N, K'] of [N, K]; numbers that do not vary are left out."""
        return (styles[:, self._varies] - self._centre) / self._spread * self._scale


@lru_cache(maxsize=1)
def _aspect_sizes() -> np.ndarray:
    """[K]: how many numbers there are of the aspect of each."""
    features = style_features(np.zeros((4, 4, 3), np.uint8))
    counts = [len(features[aspect]) for aspect in Aspect]
    return np.repeat(counts, counts)


def layout_vectors(layouts: np.ndarray) -> np.ndarray:
    """[N, 768] unit vectors of the windows in the middle; 0 for plain grounds."""
    first = (GRID - WINDOW) // 2
    return _unit(layouts[:, first : first + WINDOW, first : first + WINDOW])


def layout_distances(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N, M] as at the top.

    Args:
        pictures, others: [N, 20, 20, 3] and [M, 20, 20, 3].
    """
    middle = layout_vectors(pictures)
    nearest = np.full((len(pictures), len(others)), -1.0, np.float32)
    for turned in (others, others[:, :, ::-1]):
        for top in range(SHIFTS):
            for left in range(SHIFTS):
                window = turned[:, top : top + WINDOW, left : left + WINDOW]
                np.maximum(nearest, middle @ _unit(window).T, out=nearest)
    return 1.0 - nearest


def _unit(windows: np.ndarray) -> np.ndarray:
    centred = windows - windows.mean(axis=(1, 2), keepdims=True)
    flat = centred.reshape(len(windows), -1)
    length = np.sqrt(np.square(flat).sum(axis=1, keepdims=True))
    plain = length < FLAT * np.sqrt(flat.shape[1])
    return np.where(plain, 0.0, flat / np.maximum(length, 1e-9)).astype(np.float32)


def _at_most(image: Image.Image, side: int) -> Image.Image:
    size = working_size(image.size, side)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
