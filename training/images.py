"""From an image file to pixels: upright, RGB on a plain ground, cut to the training size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import AtelierError

IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
BACKGROUND = (255, 255, 255)


def check_image(path: Path) -> tuple[int, int]:
    """(width, height) from the header alone, so that large folders are listed fast.

    Raises:
        AtelierError: the file is empty, no image, or larger than Pillow's safety limit.
    """
    if path.stat().st_size == 0:
        raise AtelierError(f'"{path}" is empty (0 bytes). Remove it or copy it again.')
    with _opened(path) as image:
        return image.size


def load_image(path: Path, resolution: int) -> Tensor:
    """The picture as training sees it.

    EXIF orientation is applied, transparency laid on white, the shorter side scaled to
    ``resolution`` and the longer one cut to it around the centre.

    Args:
        resolution: side of the square, px.

    Returns:
        [resolution, resolution, 3] float32, 0..1, RGB (ComfyUI's IMAGE layout without the batch).

    Raises:
        AtelierError: the file is broken; names it and says what to do.
    """
    with _opened(path) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise AtelierError(
                f'"{path}" is damaged or cut short ({error}). Save it again from the original or '
                "remove it from the folder."
            ) from error
        upright = _eight_bit(ImageOps.exif_transpose(image)).convert("RGBA")
    flat = Image.new("RGBA", upright.size, (*BACKGROUND, 255))
    flat.alpha_composite(upright)
    fitted = ImageOps.fit(flat.convert("RGB"), (resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits; Pillow's own conversion would clip it at 255 of 65535."""
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image, dtype=np.float32) / 257
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise AtelierError(
            f'"{path}" is not an image, whatever its name says. Remove it from the folder.'
        ) from error
    except Image.DecompressionBombError as error:
        raise AtelierError(f'"{path}" is too large to be safe: {error}. Scale it down.') from error
    except OSError as error:
        raise AtelierError(f'"{path}" cannot be read: {error}.') from error
