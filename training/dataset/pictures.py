"""Pictures of a dataset, in files or in memory, and their pixels: upright, 8 bits, RGB."""

from __future__ import annotations

import hashlib
import struct
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import AtelierError
from .buckets import Size
from .fit import Placement

NOT_PICTURES = frozenset({"EPS", "FITS", "GRIB", "HDF5", "MPEG", "MPO", "PDF", "WMF"})
"""What Pillow knows besides pictures: documents, films, data, and what it cannot draw by itself."""

MOST_PIXELS = 64_000_000
"""Of a picture scaled as a whole: a strip of 1 × 4000 px covers its bucket at 256 × 1,024,000."""

ORIENTATION = 0x0112
"""EXIF tag."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture on disk."""

    path: str
    size: Size
    """(width, height) px, upright."""


@dataclass(frozen=True, eq=False)
class ImagePixels:
    """A picture that the graph made."""

    pixels: np.ndarray
    """[H, W, 3], [H, W, 4] (alpha) or [H, W] (a mask), uint8."""
    digest: str = field(init=False)
    """SHA-256 of shape and pixels."""

    def __post_init__(self) -> None:
        digest = hashlib.sha256(str(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        object.__setattr__(self, "digest", digest.hexdigest())

    @property
    def size(self) -> Size:
        """(width, height) px."""
        return (self.pixels.shape[1], self.pixels.shape[0])


Picture = ImageFile | ImagePixels


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Extensions of all formats that Pillow opens here, in lower case, with their dots."""
    known = Image.registered_extensions().items()
    return frozenset(s for s, kind in known if kind in Image.OPEN and kind not in NOT_PICTURES)


def check_image(path: Path, name: str | None = None) -> Size:
    """Upright (width, height) from the header alone, so that large folders are listed fast.

    Args:
        name: what messages call the file; its path when None.

    Raises:
        AtelierError: the file is empty, no image, or larger than Pillow's safety limit.
    """
    name = name or str(path)
    with _opened(path, name) as image:
        width, height = image.size
        sideways = _orientation(image) in (5, 6, 7, 8)
    return (height, width) if sideways else (width, height)


def open_picture(picture: Picture) -> Image.Image:
    """The whole picture, decoded, upright, 8 bits a channel: mode RGBA if it may be transparent,
    RGB otherwise. Of an animation, the first frame.

    Raises:
        AtelierError: the file is broken; names it and says what to do.
    """
    if isinstance(picture, ImagePixels):
        image = Image.fromarray(picture.pixels)
        return image if image.mode == "RGBA" else image.convert("RGB")
    path = Path(picture.path)
    with _opened(path, picture.path) as image:
        turn = UPRIGHT.get(_orientation(image))
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise AtelierError(
                f'"{path}" is damaged or cut short ({error}). Save it again from the original or '
                "remove it from the folder."
            ) from error
        whole = _eight_bit(image)
    whole = whole.convert("RGBA" if whole.has_transparency_data else "RGB")
    return whole if turn is None else whole.transpose(turn)


def fitted_pixels(image: Image.Image, placement: Placement, background: tuple) -> Tensor:
    """A picture as training sees it.

    Args:
        background: RGB colour that a transparent picture is laid on.

    Returns:
        [H, W, 3] float32, 0..1, RGB (ComfyUI's IMAGE layout without the batch).
    """
    if image.mode == "RGBA":
        ground = Image.new("RGBA", image.size, (*background, 255))
        ground.alpha_composite(image)
        image = ground
    return _fitted(image.convert("RGB"), placement)


def fitted_mask(image: Image.Image, placement: Placement) -> Tensor:
    """[H, W] float32, 0..1: the alpha of an RGBA picture, the brightness of any other."""
    grey = image.getchannel("A") if image.mode == "RGBA" else image.convert("L")
    return _fitted(grey, placement)


def _fitted(image: Image.Image, placement: Placement) -> Tensor:
    (left, top), (width, height) = placement.crop, placement.size
    box = (left, top, left + width, top + height)
    if placement.resized[0] * placement.resized[1] > MOST_PIXELS:
        image = _scaled_part(image, placement, box)
    else:
        if image.size != placement.resized:
            image = image.resize(placement.resized, Image.Resampling.LANCZOS)
        if placement.flip:
            image = ImageOps.mirror(image)
        image = image.crop(box)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def _scaled_part(image: Image.Image, placement: Placement, box: tuple) -> Image.Image:
    """Only the part that is kept, for a strip whose whole would fill the memory once scaled. Its
    edges differ a little, since nothing beyond them is looked at."""
    if placement.flip:
        image = ImageOps.mirror(image)
    scale = [old / new for old, new in zip(image.size, placement.resized, strict=True)] * 2
    part = [length * factor for length, factor in zip(box, scale, strict=True)]
    return image.resize(placement.size, Image.Resampling.LANCZOS, box=tuple(part))


UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what sets the picture upright."""


def _orientation(image: Image.Image) -> int:
    """What is still to be turned, from the header alone.

    Pillow turns a TIFF itself, size included; and of a PNG it would decode all pixels to look for
    EXIF behind them.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (ValueError, TypeError, SyntaxError, struct.error, OSError):
        return 1  # EXIF that cannot be read says nothing; the picture itself may be fine


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deeper grey scaled to 8 bits; Pillow's own conversion would clip it at 255 of 65535."""
    if not image.mode.startswith(("I", "F")):
        return image
    grey = np.asarray(image, dtype=np.float32)
    return Image.fromarray((grey * _scale(image, grey)).round().clip(0, 255).astype(np.uint8))


def _scale(image: Image.Image, grey: np.ndarray) -> float:
    """Factor to 0..255: 16-bit numbers by their range, floats from 0..1 or by their largest."""
    if image.mode == "F":
        largest = float(np.nanmax(grey, initial=0))
        return 255 if largest <= 1 else 255 / largest
    return 1 / 257 if grey.max(initial=0) <= 65535 else 255 / float(grey.max())


def _opened(path: Path, name: str) -> Image.Image:
    try:
        if path.stat().st_size == 0:
            raise AtelierError(f'"{name}" is empty (0 bytes). Remove it or copy it again.')
        with warnings.catch_warnings():  # Pillow's limit warns at half of what it refuses
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except UnidentifiedImageError as error:
        raise AtelierError(
            f'"{name}" is not an image, whatever its name says. Remove it from the folder.'
        ) from error
    except Image.DecompressionBombError as error:
        raise AtelierError(f'"{name}" is too large to be safe: {error}. Scale it down.') from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise AtelierError(f'"{name}" cannot be read: {error}.') from error
