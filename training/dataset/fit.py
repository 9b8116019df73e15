"""How a picture is scaled, cut and mirrored to the size it trains at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import torch

from ..errors import require, require_number
from ..random_streams import generator
from .buckets import Size, cover, make_buckets, select_bucket, select_without_upscale

BUCKET_RESO_STEPS = (8, 16, 32, 64)


class Crop(str, Enum):
    """Which part of a picture is kept when it is longer than its bucket."""

    CENTER = "center"
    RANDOM = "random"


class LatentKind(str, Enum):
    """What is taken from the distribution that a VAE gives for a picture."""

    MODE = "mode"
    SAMPLE = "sample"


@dataclass(frozen=True)
class FitOptions:
    """What decides the pixels and the latent of a picture."""

    resolutions: tuple[int, ...] = (512,)
    """Px; a picture trains at about resolution² pixels, once at each of them."""
    enable_bucket: bool = True
    """Keep about the aspect ratio; off = every picture is cut to a square."""
    bucket_reso_steps: int = 64
    """Sides of the buckets are multiples of this, px."""
    min_bucket_reso: int = 0
    """Shortest side of a bucket, px; 0 = half the resolution."""
    max_bucket_reso: int = 0
    """Longest side of a bucket, px; 0 = twice the resolution."""
    bucket_no_upscale: bool = False
    """Pictures smaller than the resolution keep their size; the buckets are then what is left of
    the pictures, and have no shortest or longest side."""
    crop: Crop = Crop.CENTER
    crop_variants: int = 4
    """Different random crops of each picture that are encoded."""
    flip_aug: bool = False
    """Mirror a picture every other time, on average."""
    latents: LatentKind = LatentKind.MODE
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB colour that transparent pictures are laid on."""

    def __post_init__(self) -> None:
        require(len(self.resolutions) > 0, "resolution is empty: 512 for SD1.5, 1024 for SDXL.")
        require(
            len(set(self.resolutions)) == len(self.resolutions),
            f"resolution holds the same value twice: {self.resolutions}.",
        )
        steps = self.bucket_reso_steps
        require(
            steps in BUCKET_RESO_STEPS,
            f"bucket_reso_steps is {steps}: it must be one of {BUCKET_RESO_STEPS}.",
        )
        for resolution in self.resolutions:
            self._require_resolution(resolution)
        require_number("crop_variants", self.crop_variants, 1, 64, "4 is usual.")

    def _require_resolution(self, resolution: int) -> None:
        require_number("resolution", resolution, 64, 4096, "512 for SD1.5, 1024 for SDXL and Flux.")
        require(
            resolution % 8 == 0,
            f"resolution is {resolution}: the VAE needs a multiple of 8; "
            f"{resolution // 8 * 8} is near.",
        )
        if self.enable_bucket and not self.bucket_no_upscale:
            self._require_limits(resolution)

    def _require_limits(self, resolution: int) -> None:
        low, high = self.bucket_limits(resolution)
        for name, value in (("min_bucket_reso", low), ("max_bucket_reso", high)):
            require_number(name, value, 8, 16384, "0 = half and twice the resolution.")
            require(
                value % self.bucket_reso_steps == 0,
                f"{name} is {value}: it must be a multiple of bucket_reso_steps "
                f"({self.bucket_reso_steps}).",
            )
        require(
            low <= resolution <= high,
            f"resolution is {resolution}: it must lie between min_bucket_reso ({low}) and "
            f"max_bucket_reso ({high}).",
        )

    def bucket_limits(self, resolution: int) -> tuple[int, int]:
        """(shortest, longest) side of a bucket at this resolution, px."""
        steps = self.bucket_reso_steps
        low = self.min_bucket_reso or max(steps, resolution // 2 // steps * steps)
        high = self.max_bucket_reso or resolution * 2 // steps * steps
        return low, high

    @property
    def crops(self) -> int:
        """How many different crops of a picture may be drawn."""
        return self.crop_variants if self.crop is Crop.RANDOM else 1


@dataclass(frozen=True, slots=True)
class Placement:
    """How one picture becomes the pixels that train; all in px, (width, height) or (left, top).

    ``original``, ``crop`` and ``size`` are also what SDXL is told of a picture: its size before
    scaling, where it was cut, and its size afterwards (Podell et al. 2023, arXiv:2307.01952, 2.2).
    They are those of the pixels themselves; sd-scripts computes its crop from the aspect ratios.
    """

    original: Size
    """As in the file, upright."""
    resized: Size
    """Scaled, before the cut."""
    crop: Size
    """Upper left corner of the cut in the scaled (and mirrored) picture."""
    size: Size
    """After the cut: the bucket."""
    flip: bool = False
    """Mirrored left to right after scaling."""


class Variant(NamedTuple):
    """Which of the ways to fit a picture."""

    resolution: int
    """Index into :attr:`FitOptions.resolutions`."""
    crop: int = 0
    flip: bool = False


def bucket_of(size: Size, options: FitOptions, resolution: int) -> Size:
    """The size (width, height) in which a picture of ``size`` trains."""
    return _choose(size, options, resolution)[0]


def place(size: Size, options: FitOptions, variant: Variant, key: str) -> Placement:
    """Fit a picture of ``size`` px.

    Args:
        key: says, with the number of the crop, where a random crop lies: the name of the sample.
    """
    bucket, resized = _choose(size, options, options.resolutions[variant.resolution])
    room = (resized[0] - bucket[0], resized[1] - bucket[1])
    if options.crop is Crop.RANDOM:
        rng = generator(0, "crop", key, variant.crop)
        left, top = (int(torch.randint(r + 1, (1,), generator=rng)) for r in room)
    else:
        left, top = room[0] // 2, room[1] // 2
    # The cut follows the mirroring, so that the same part of the picture is kept.
    left = room[0] - left if variant.flip else left
    return Placement(size, resized, (left, top), bucket, variant.flip)


def fits(size: Size, options: FitOptions) -> bool:
    """False for a picture too narrow for a single step (``bucket_no_upscale`` only)."""
    return all(min(bucket_of(size, options, r)) > 0 for r in options.resolutions)


@lru_cache(maxsize=4096)  # pictures of a set often share their size
def _choose(size: Size, options: FitOptions, resolution: int) -> tuple[Size, Size]:
    steps = options.bucket_reso_steps
    if not options.enable_bucket:
        return (resolution, resolution), cover(size, (resolution, resolution))
    if options.bucket_no_upscale:
        return select_without_upscale(size, resolution, steps)
    return select_bucket(size, make_buckets(resolution, *options.bucket_limits(resolution), steps))
