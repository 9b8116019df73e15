"""A file received over HTTPS, gone on with where the connection was lost, and checked."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import AtelierError, require

PIECE = 1 << 18
"""Bytes read at a time: Cancel is looked at between two."""

TIMEOUT = 30.0
"""Seconds without a byte, after which the connection counts as lost."""

TRIES = 4
"""How often in a row the connection may be lost before a single byte came."""

NETWORK = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)
"""What is raised for a connection that is lost or cannot be made."""

BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP answers of a server that may have time later."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the hub, and the digest it has there."""

    path: str
    url: str
    size_bytes: int
    sha256: str | None
    """Of large files."""
    git_sha1: str | None
    """Of small ones: SHA-1 of "blob", the size in decimal, a zero byte and the content."""


def download(file: RemoteFile, target: Path, tick: Callable[[int], None]) -> None:
    """Receive a file whole.

    Args:
        tick: gets the bytes received so far; may raise to cancel.

    Raises:
        AtelierError: it was not received, or is not what the hub says it is.
        OSError: the disk is full.
    """
    context = _certificates()
    with target.open("wb") as out:
        left = TRIES
        while left:
            before = out.tell()
            try:
                _receive(file, out, tick, context)
                break
            except NETWORK as error:
                left = left - 1 if out.tell() == before else TRIES - 1
                if left == 0 or not _may_pass(error):
                    raise AtelierError(f"{file.url} was not received: {in_words(error)}") from error
            for _ in range(10):
                time.sleep(0.1)
                tick(out.tell())
    _check(file, target)


def _receive(
    file: RemoteFile, out: BinaryIO, tick: Callable[[int], None], context: ssl.SSLContext
) -> None:
    request = urllib.request.Request(file.url)
    if out.tell():
        request.add_header("Range", f"bytes={out.tell()}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT, context=context) as answer:
        if answer.status != http.client.PARTIAL_CONTENT:
            out.seek(0)
            out.truncate()
        while piece := answer.read(PIECE):
            require(
                out.tell() + len(piece) <= file.size_bytes,
                f"{file.url} is not the file that it should be: it is larger than "
                f"{file.size_bytes} bytes. Nothing was kept; try again.",
            )
            out.write(piece)
            tick(min(out.tell(), file.size_bytes))
    if out.tell() < file.size_bytes:  # http.client says nothing of an end that comes too early
        raise ConnectionError(f"the connection ended after {out.tell()} of {file.size_bytes} bytes")


def _check(file: RemoteFile, target: Path) -> None:
    size = target.stat().st_size
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode())
    with target.open("rb") as content:
        while piece := content.read(1 << 20):
            digest.update(piece)
    require(
        digest.hexdigest() == (file.sha256 or file.git_sha1),
        f"{file.url} is not the file that it should be: its checksum differs. It was damaged on "
        "the way, or changed. Nothing was kept; try again.",
    )


def _certificates() -> ssl.SSLContext:
    """The system's, and those that Python's web clients bring along: some systems have none."""
    context = ssl.create_default_context()
    try:
        import certifi
    except ImportError:
        return context  # the system's alone
    context.load_verify_locations(certifi.where())
    return context


def _may_pass(error: Exception) -> bool:
    """Whether it is worth another try."""
    return not isinstance(error, urllib.error.HTTPError) or error.code in BUSY


def in_words(error: Exception) -> str:
    """A sentence: this pack's own words, or the first line of another's."""
    if isinstance(error, AtelierError):
        return str(error)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].rstrip('.')}."
