"""What a picture's content is, without reading the same file twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import AtelierError, FileChanged
from ..files import write_whole
from .pictures import ImagePixels, Picture

RACY_SECONDS = 2.0
"""A file as young as this may still be changed without changing its time: some file systems count
in steps of two seconds."""

VERSION = 2
"""Of the file, and of what counts as content."""

PNG = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"iTXt")
GRAPH_TEXTS = (b"prompt\0", b"workflow\0", b"parameters\0")
"""What the host writes into these chunks: the whole graph. A picture that is painted again, alike
to the bit, must not be another for what the graph says elsewhere. Other texts may turn it (EXIF).
"""

MOST_FILES = 500_000
"""How many are remembered; those added first are forgotten first."""

Stamp = tuple[int, int, int]
"""Size in bytes, time of the last change of the content and of anything (both ns). The second is
what tells an edit after which a program has put the first one back."""

log = logging.getLogger("lora_atelier")


class ContentDigests:
    """SHA-256 of files by path, remembered while size and times stay the same."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "digests.memo"
        self._known = _read(self.file)
        self._added: dict[str, tuple[Stamp, str]] = {}
        self._forgotten: set[str] = set()

    def of(self, picture: Picture) -> str:
        """Digest of a picture's file, or of the pixels of one that the graph made.

        Raises:
            FileChanged: the file is gone or cannot be read any more.
        """
        if isinstance(picture, ImagePixels):
            return picture.digest
        path = picture.path
        try:
            stat = os.stat(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        began = time.time()
        digest = content_digest(picture)
        if began - stat.st_mtime > RACY_SECONDS:
            self._known[path] = self._added[path] = (stamp, digest)
        return digest

    def forget(self, picture: Picture) -> None:
        """Read the file anew the next time."""
        if not isinstance(picture, ImagePixels):
            self._forgotten.add(picture.path)
            self._known.pop(picture.path, None)
            self._added.pop(picture.path, None)

    def save(self) -> None:
        """Remember for the next run; what another run added in the meantime stays.

        A memo that cannot be written only costs time: the next run reads the files again.
        """
        if not self._added and not self._forgotten:
            return
        others = {p: e for p, e in _read(self.file).items() if p not in self._forgotten}
        merged = list({**others, **self._added}.items())[-MOST_FILES:]
        content = json.dumps({"version": VERSION, "files": dict(merged)}).encode()
        try:
            write_whole(self.file, b"%08x\n%s" % (zlib.crc32(content), content))
        except AtelierError as error:
            log.warning("%s", error)
        self._added, self._forgotten = {}, set()


def content_digest(picture: Picture) -> str:
    """SHA-256 of what a picture is made of at this moment: its file, of PNG without the graph.

    Raises:
        FileChanged: the file is gone or cannot be read any more.
    """
    if isinstance(picture, ImagePixels):
        return picture.digest
    digest = hashlib.sha256()
    try:
        with open(picture.path, "rb") as file:
            for piece in _pieces(file):
                digest.update(piece)
    except OSError as error:
        raise _unreadable(picture.path, error) from error
    return digest.hexdigest()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """The content, at most 1 MB at once."""
    start = file.read(len(PNG))
    yield start
    while start == PNG and len(head := file.read(8)) > 0:  # length and kind of a chunk
        behind = int.from_bytes(head[:4], "big") + 4  # its content and checksum
        name = file.read(min(behind, 16)) if head[4:] in PNG_TEXTS else b""
        behind -= len(name)
        if name.startswith(GRAPH_TEXTS):
            file.seek(behind, os.SEEK_CUR)
            continue
        yield head + name
        while behind > 0 and (piece := file.read(min(behind, 1 << 20))):
            yield piece
            behind -= len(piece)
    while piece := file.read(1 << 20):
        yield piece


def _unreadable(path: str, error: OSError) -> FileChanged:
    return FileChanged(
        f'"{path}" cannot be read: {error.strerror or error}. It could when the folder was read: '
        "put it back, or queue again to go on without it."
    )


def _read(file: Path) -> dict[str, tuple[Stamp, str]]:
    """Nothing, when there is no such file or it is not as it was written: it is made again."""
    try:
        checksum, _, content = file.read_bytes().partition(b"\n")
        if checksum != b"%08x" % zlib.crc32(content):
            return {}
        memo = json.loads(content)
        if memo["version"] != VERSION:
            return {}
        return {path: (tuple(stamp), digest) for path, (stamp, digest) in memo["files"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
