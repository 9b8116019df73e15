"""Small pictures for the browser, made once and kept on disk by content."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

from PIL import Image

from ...training.dataset.digests import content_digest
from ...training.dataset.pictures import Picture, open_picture
from ...training.errors import AtelierError, require
from ...training.files import partial_of

SIDES = {"thumbnails": 256, "pictures": 1024}
"""Longest side in px by what the address calls it."""
QUALITY = 82
MEDIA_TYPE = "image/webp"


def thumbnail(picture: Picture | None, digest: str, side: int, folder: Path) -> bytes:
    """A picture no larger than ``side`` px, as a WebP file without the metadata of the original.

    Args:
        picture: None = it is gone; then only one that was made before can be had.
        digest: SHA-256 of its content.
        folder: where they are kept. One that cannot be written costs time only.

    Raises:
        AtelierError: the picture is gone, damaged, or not what it was.
    """
    file = folder / digest[:2] / f"{digest}_{side}.webp"
    with suppress(OSError):  # not made yet
        content = file.read_bytes()
        if _is_whole(content):
            return content
    if picture is None:
        raise AtelierError("This picture is no longer in memory.")
    content = _small(open_picture(picture), side)
    require(content_digest(picture) == digest, "This picture has changed since it was looked at.")
    _keep(file, content)
    return content


def _small(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()


def _is_whole(content: bytes) -> bool:
    """A WebP file begins with its length; after a power cut it may be cut short."""
    return content[:4] == b"RIFF" and len(content) == 8 + int.from_bytes(content[4:8], "little")


def _keep(file: Path, content: bytes) -> None:
    partial = partial_of(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(file)
    except OSError:  # it is made anew the next time
        with suppress(OSError):
            partial.unlink()
