"""What is measured of every picture: how soft its edges are, and two fingerprints of its content.

A picture is judged at a longest side of at most 512 px, so that the numbers of large and small ones
compare; it is never scaled up for that.

Softness is the width of the blur over all edges. With L the Laplacian and G the gradient of the
grey picture, an edge blurred by a Gaussian of σ px has ΣL²/Σ|G|² = 1/(2σ²), whatever its contrast
(∫g'²/∫g² of a Gaussian g). So σ = sqrt(Σ|G|²/(2ΣL²)). Flat areas add nothing to either sum: the
plain variance of the Laplacian (Pech-Pacheco et al. 2000, ICPR), which counts them, calls every
small drawing on a white ground blurred. Where the blur is wide, rounding to 8 bits and film grain
are stronger than what is left of L; so σ is measured again on blocks of 4×4 px, in which they
average out, and counts if it is wider than what sharp pictures have there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..cache import TensorCache, digest_of
from ..errors import AtelierError, needed_package
from .buckets import Size
from .digests import ContentDigests
from .fit import Placement
from .pictures import ImageFile, Picture, fitted_pixels, open_picture
from .samples import ImageDataset, Problem, Sample

VERSION = 1
"""Part of the cache key: raise it when a measurement changes."""

LONGEST_SIDE = 512
"""Px at which pictures are measured."""

BLOCK = 4
"""Px; side of the blocks in which wide blur is measured."""

WIDE_BLUR = 3.0
"""σ in px from which the measurement on blocks counts. Sharp photos and drawings have 1.4 to 2.5
there, since blocks have edges of their own; those blurred by 6 px have 3.3 and more."""

SMALLEST_SIDE = 64
"""Px; on smaller pictures there are too few blocks."""

BLANK_CONTRAST = 2.0
"""Grey levels; a picture with less is one colour all over, and its edges say nothing."""

IN_FLIGHT = 64
"""Pictures that are decoded together, which bounds the memory."""

Tick = Callable[[], None]


class Edges(NamedTuple):
    """How strong the edges of a picture are, and how abrupt."""

    laplacian: float
    """Variance of the Laplacian, grey levels² (0..255)."""
    gradient: float
    """Mean of the squared length of the gradient, grey levels²."""

    @property
    def sigma(self) -> float:
        """Width of the blur, px; 0 without edges."""
        return math.sqrt(self.gradient / (2 * self.laplacian)) if self.laplacian else 0.0


@dataclass(frozen=True, eq=False)
class Measurements:
    """What one picture is like."""

    edges: Edges
    """Of the grey picture."""
    block_edges: Edges
    """Of its blocks; nothing for a small picture."""
    contrast: float
    """Standard deviation, grey levels."""
    phash: int
    """64 bits; pictures of similar shapes differ in few of them."""
    colours: np.ndarray
    """[8, 8, 3] uint8: the picture in 64 patches, since the hash does not see colour."""

    @property
    def blank(self) -> bool:
        """One colour all over."""
        return self.contrast < BLANK_CONTRAST

    @property
    def blur(self) -> float:
        """σ of the blur over its edges, px at the working size; 0 for a blank picture."""
        wide = BLOCK * self.block_edges.sigma
        if self.blank:
            return 0.0
        return max(self.edges.sigma, wide) if wide >= WIDE_BLUR else self.edges.sigma


@dataclass(frozen=True)
class Analysis:
    """Every picture of a dataset, in the order of its samples."""

    digests: tuple[str | None, ...]
    """Of the content; None where the file cannot be read."""
    measurements: tuple[Measurements | None, ...]
    """None where the picture is broken."""
    problems: tuple[Problem, ...]
    """The broken ones."""


def measure_dataset(
    dataset: ImageDataset, digests: ContentDigests, cache: TensorCache, tick: Tick
) -> Analysis:
    """Measure every picture; what was measured before is read from the cache.

    Args:
        tick: called after each picture; may raise to cancel, then what is done stays in the cache.
    """
    found: list[tuple[str | None, Measurements | None]] = []
    problems: list[Problem] = []
    try:
        for sample, digest, result in _measured(dataset.samples, digests, cache):
            if isinstance(result, AtelierError):
                problems.append(Problem(sample.name, _reason(sample, result)))
                found.append((digest, None))
            else:
                found.append((digest, result))
            tick()
    finally:
        digests.save()
    return Analysis(tuple(d for d, _ in found), tuple(m for _, m in found), tuple(problems))


def measure(picture: Picture, background: tuple[int, int, int]) -> Measurements:
    """Measure one picture.

    Args:
        background: RGB colour that a transparent picture is laid on.

    Raises:
        AtelierError: the file is broken.
    """
    image = Image.fromarray(_scaled(picture, background))
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    large = min(grey.shape) >= SMALLEST_SIDE
    return Measurements(
        edges_of(grey),
        edges_of(_blocks(grey)) if large else Edges(0.0, 0.0),
        float(grey.std()),
        _phash(image),
        np.asarray(image.resize((8, 8), Image.Resampling.BOX)),
    )


def edges_of(grey: np.ndarray) -> Edges:
    """Measure a picture [H, W]: its five-point Laplacian, with the border repeated outward, and
    the differences between neighbours."""
    ndimage = needed_package("scipy.ndimage", "The dataset report")
    steps = (np.diff(grey, axis=axis) for axis in (0, 1))
    gradient = sum(float((step**2).mean()) for step in steps if step.size)
    return Edges(float(ndimage.laplace(grey, mode="nearest").var()), gradient)


def _blocks(grey: np.ndarray) -> np.ndarray:
    """The mean of every whole block, [H / BLOCK, W / BLOCK]."""
    height, width = (side // BLOCK for side in grey.shape)
    whole = grey[: height * BLOCK, : width * BLOCK]
    return whole.reshape(height, BLOCK, width, BLOCK).mean(axis=(1, 3))


def _scaled(picture: Picture, background: tuple[int, int, int]) -> np.ndarray:
    """[H, W, 3] uint8, the whole picture at the working size."""
    image = open_picture(picture)
    size = working_size(image.size)
    pixels = fitted_pixels(image, Placement(image.size, size, (0, 0), size), background)
    return (pixels.numpy() * 255).round().astype(np.uint8)


def working_size(size: Size, longest_side: int = LONGEST_SIDE) -> Size:
    """The size at which a picture is measured, px; never larger than it is."""
    scale = min(1.0, longest_side / max(size))
    return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def _phash(image: Image.Image) -> int:
    imagehash = needed_package("imagehash", "The dataset report")
    bits = imagehash.phash(image).hash
    return int.from_bytes(np.packbits(bits.flatten()).tobytes(), "big")


def _measured(
    samples: Sequence[Sample], digests: ContentDigests, cache: TensorCache
) -> Iterator[tuple[Sample, str | None, Measurements | AtelierError]]:
    """In order; decoding runs beside itself, the cache is touched by this thread alone."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for first in range(0, len(samples), IN_FLIGHT):
            chunk = samples[first : first + IN_FLIGHT]
            known = [_known(sample, digests, cache) for sample in chunk]
            jobs = [
                pool.submit(_attempt, sample) if result is None else None
                for sample, (_, result) in zip(chunk, known, strict=True)
            ]
            for sample, (digest, result), job in zip(chunk, known, jobs, strict=True):
                if job is not None:
                    result = job.result()
                    if isinstance(result, Measurements):
                        cache.write(_key(digest, sample), _tensors(result))
                yield sample, digest, result
    finally:  # after Cancel nothing more is decoded
        pool.shutdown(cancel_futures=True)


def _known(
    sample: Sample, digests: ContentDigests, cache: TensorCache
) -> tuple[str | None, Measurements | AtelierError | None]:
    try:
        digest = digests.of(sample.image)
    except AtelierError as error:
        return None, error
    entry = cache.read(_key(digest, sample))
    return digest, None if entry is None else _measurements(entry[0])


def _reason(sample: Sample, error: AtelierError) -> str:
    """The message with the name of the sample for its path: reports are saved and shown around."""
    path = sample.image.path if isinstance(sample.image, ImageFile) else ""
    return str(error).replace(path, sample.name) if path else str(error)


def _attempt(sample: Sample) -> Measurements | AtelierError:
    try:
        return measure(sample.image, sample.fit.background)
    except AtelierError as error:
        return error


def _key(digest: str, sample: Sample) -> str:
    return digest_of("measurements", VERSION, digest, sample.fit.background)


def _tensors(found: Measurements) -> dict[str, Tensor]:
    numbers = (*found.edges, *found.block_edges, found.contrast)
    return {
        "numbers": torch.tensor(numbers, dtype=torch.float64),
        "phash": torch.tensor(list(found.phash.to_bytes(8, "big")), dtype=torch.uint8),
        "colours": torch.from_numpy(found.colours.copy()),
    }


def _measurements(tensors: dict[str, Tensor]) -> Measurements:
    *edges, contrast = tensors["numbers"].tolist()
    phash = int.from_bytes(bytes(tensors["phash"].tolist()), "big")
    colours = tensors["colours"].numpy().copy()
    return Measurements(Edges(*edges[:2]), Edges(*edges[2:]), contrast, phash, colours)
