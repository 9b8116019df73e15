"""Aspect-ratio buckets as kohya-ss/sd-scripts makes and chooses them.

Sources: ``library/model_util.py`` ``make_bucket_resolutions`` and ``library/train_util.py``
``BucketManager.select_bucket`` (sd-scripts, commit 48d368fa). Sizes are (width, height) in px.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

Size = tuple[int, int]


class Choice(NamedTuple):
    """What becomes of a picture: scaled to ``resized``, then cut to ``bucket``."""

    bucket: Size
    resized: Size


@lru_cache(maxsize=64)
def make_buckets(resolution: int, min_size: int, max_size: int, steps: int) -> tuple[Size, ...]:
    """For every side the longest other one whose area is at most resolution², both ways round, and
    the square; sides are multiples of ``steps``. In ascending order.

    Args:
        min_size, max_size: the shortest and the longest side, px; multiples of ``steps``.
    """
    area = resolution * resolution
    square = resolution // steps * steps
    sizes = {(square, square)}
    for width in range(min_size, max_size + 1, steps):
        height = min(max_size, area // width // steps * steps)
        if height >= min_size:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def select_bucket(size: Size, buckets: tuple[Size, ...]) -> Choice:
    """The bucket of the nearest aspect ratio, and the scaled size that covers it.

    A picture that already has a bucket's size is taken as it is.
    """
    width, height = size
    if size in buckets:
        return Choice(size, size)
    ratio = width / height
    bucket = min(buckets, key=lambda b: abs(b[0] / b[1] - ratio))
    return Choice(bucket, cover(size, bucket))


def select_without_upscale(size: Size, resolution: int, steps: int) -> Choice:
    """Large pictures are scaled down to resolution², small ones kept; the bucket is what is left
    when both sides are cut to a multiple of ``steps``.

    A side shorter than ``steps`` gives a bucket of side 0: there is no room for the picture.
    """
    width, height = size
    if width * height > resolution * resolution:
        size = _scaled_down(width / height, resolution * resolution, steps)
    bucket = (size[0] - size[0] % steps, size[1] - size[1] % steps)
    return Choice(bucket, size)


def cover(size: Size, bucket: Size) -> Size:
    """``size`` scaled by one factor so that it just covers ``bucket``."""
    width, height = size
    if width / height > bucket[0] / bucket[1]:
        scale = bucket[1] / height
    else:
        scale = bucket[0] / width
    return (int(width * scale + 0.5), int(height * scale + 0.5))


def _scaled_down(ratio: float, area: int, steps: int) -> Size:
    """One side rounded to ``steps``, whichever of the two keeps the aspect ratio better."""
    width = math.sqrt(area * ratio)
    by_width = _multiple(width, steps)
    by_height = _multiple(area / width, steps)
    # A very long picture may have no room for one step; the other side decides then.
    error_by_width = abs(by_width / (_multiple(by_width / ratio, steps) or math.inf) - ratio)
    error_by_height = abs(_multiple(by_height * ratio, steps) / (by_height or math.inf) - ratio)
    if error_by_width < error_by_height:
        return (by_width, int(by_width / ratio + 0.5))
    return (int(by_height * ratio + 0.5), by_height)


def _multiple(length: float, steps: int) -> int:
    """``length`` rounded to a whole px, then down to a multiple of ``steps``."""
    whole = int(length + 0.5)
    return whole - whole % steps
