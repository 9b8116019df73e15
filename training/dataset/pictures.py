"""Pictures of a dataset, in files or in memory, and their pixels: upright, 8 bits, RGB."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import ImageFile as PillowFile
from torch import Tensor

from ..errors import AtelierError
from .buckets import Size
from .fit import Placement

NOT_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})
"""What Pillow knows besides pictures: documents, films, data, and what it cannot draw by itself. An
EPS would be run as a program, whatever it is called."""

COMMON = frozenset({"GIF", "JPEG", "PNG", "WEBP"})
"""Tried first."""

LARGEST = 178_956_970
"""Pixels of a file; a picture of more is taken for a bomb. It is where Pillow's own limit lies by
default (which other packs may switch off); from half of it on, Pillow warns."""

BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises for files that are not as they should be."""

MOST_PIXELS = 64_000_000
"""Of a picture scaled as a whole: a strip of 1 × 4000 px covers its bucket at 256 × 1,024,000."""

ORIENTATION = 0x0112
"""EXIF tag."""

TIFF_WIDTH, TIFF_HEIGHT, SAMPLE_FORMAT = 256, 257, 339
"""TIFF tags."""
UNSIGNED = 1
"""What the last one says of whole numbers without sign."""


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


def has_file(picture: Picture) -> bool:
    """Whether it can be opened; those of a dataset out of a training job are names alone."""
    return isinstance(picture, ImagePixels) or os.path.isabs(picture.path)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Extensions of all formats that Pillow opens here, in lower case, with their dots."""
    return frozenset(s for s, kind in Image.registered_extensions().items() if kind in _formats())


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    known = set(Image.registered_extensions().values()) & Image.OPEN.keys() - NOT_PICTURES
    return tuple(sorted(known, key=lambda kind: (kind not in COMMON, kind)))


def same_shape(one: Size, other: Size) -> bool:
    """Whether two pictures have one aspect ratio, but for the rounding of their sides."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def check_image(path: Path | str, name: str | None = None) -> Size:
    """Upright (width, height) from the header alone, so that large folders are listed fast.

    Args:
        name: what messages call the file; its path when None.

    Raises:
        AtelierError: the file is empty, no image, or larger than Pillow's safety limit.
    """
    name = name or str(path)
    with _opened(str(path), name) as image:
        width, height = _stored_size(image)
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
    path = picture.path
    with _opened(path, path) as image:
        turn = UPRIGHT.get(_orientation(image))
        try:
            with _NothingMissing():
                image.load()
            if image.format == "TIFF":
                turn = None  # Pillow has turned it already
            whole = _eight_bit(image)
            whole = whole.convert("RGBA" if whole.has_transparency_data else "RGB")
        except BROKEN as error:
            raise AtelierError(
                f'"{path}" is damaged or cut short ({_told(error)}). Save it again from the '
                "original or remove it from the folder."
            ) from error
    return whole if turn is None else whole.transpose(turn)


class _NothingMissing:
    """Pillow refuses files that are cut short, also when another pack told it to fill the rest with
    grey. The switch is one for all threads, so the last to leave puts it back."""

    lock = Lock()
    inside = 0
    before = False

    def __enter__(self) -> None:
        kind = _NothingMissing
        with kind.lock:
            if kind.inside == 0:
                kind.before = PillowFile.LOAD_TRUNCATED_IMAGES
                PillowFile.LOAD_TRUNCATED_IMAGES = False
            kind.inside += 1

    def __exit__(self, *error: object) -> None:
        kind = _NothingMissing
        with kind.lock:
            kind.inside -= 1
            if kind.inside == 0:
                PillowFile.LOAD_TRUNCATED_IMAGES = kind.before


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
    """From the header alone: of a PNG, Pillow would decode all pixels to look for EXIF behind
    them."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except BROKEN:
        return 1  # EXIF that cannot be read says nothing; the picture itself may be fine


def _stored_size(image: Image.Image) -> Size:
    """Before it is turned; of a TIFF, some releases of Pillow give the size afterwards."""
    if image.format == "TIFF":
        return (image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT])
    return image.size


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deeper grey scaled to 8 bits; Pillow's own conversion would clip it at 255 of 65535."""
    if not image.mode.startswith(("I", "F")):
        return image
    deep = np.asarray(image)
    if getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT) == (UNSIGNED,) and deep.dtype == np.int32:
        deep = deep.view(np.uint32)  # Pillow counts from 2³¹ on backwards
    grey = Image.fromarray(
        _scaled_to_bytes(deep.astype(np.float32), 1 if image.mode == "F" else 65535)
    )
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        opaque = Image.fromarray(np.where(deep == transparent, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, opaque))
    return grey


def _scaled_to_bytes(grey: np.ndarray, white: float) -> np.ndarray:
    """0 becomes 0 and ``white`` 255; where there is less or more, the least and the most do, so
    that no shade is lost. What is not a number becomes black."""
    finite = grey[np.isfinite(grey)]
    low = float(finite.min(initial=0))
    high = float(finite.max(initial=white))
    scale = 255 / (high - low)
    grey = np.nan_to_num(grey, nan=0, posinf=high, neginf=low)
    return (grey * scale - low * scale).round().clip(0, 255).astype(np.uint8)


def _opened(path: str, name: str) -> Image.Image:
    try:
        image = Image.open(path, formats=_formats())
    except UnidentifiedImageError as error:
        if os.path.getsize(path) == 0:
            raise AtelierError(
                f'"{name}" is empty (0 bytes). Remove it or copy it again.'
            ) from error
        raise AtelierError(
            f'"{name}" is not an image, whatever its name says. Remove it from the folder.'
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise AtelierError(
            f'"{name}" is too large to be safe: {str(error).rstrip(".")}. Scale it down.'
        ) from error
    except BROKEN as error:
        raise AtelierError(f'"{name}" cannot be read: {_told(error)}.') from error
    width, height = image.size
    if width * height <= LARGEST:
        return image
    image.close()
    raise AtelierError(f'"{name}" is too large to be safe: {width} × {height} px. Scale it down.')


def _told(error: Exception) -> str:
    """What an exception says, without the path that the message has already, or in another form."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
