"""SHA-256 of large files, worked out once: as long as size and time of a file stay, it stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..cache import digest_of
from ..errors import AtelierError
from ..files import write_whole
from .safetensors_hashes import sha256_of_file

DIGITS = frozenset("0123456789abcdef")


class KnownHashes:
    """A small text file for each hash, named after path, size and time of what was hashed.

    Args:
        folder: safe to delete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sha256(self, path: Path, read: Callable[[int], None] = lambda count: None) -> str:
        """64 small hexadecimal digits.

        Args:
            read: told how many bytes of the file have been read, if it must be read.

        Raises:
            OSError: the file cannot be read.
        """
        stat = path.stat()
        key = digest_of("sha256", os.path.realpath(path), stat.st_size, stat.st_mtime_ns)
        known = self.folder / f"{key}.txt"
        if found := _hash_in(known):
            return found
        found = sha256_of_file(path, read)
        try:
            write_whole(known, found.encode())
        except AtelierError:
            return found  # it only has to be worked out again
        return found


def _hash_in(file: Path) -> str:
    """Empty for a file that is not there or not whole."""
    try:
        text = file.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""
    return text if len(text) == 64 and set(text) <= DIGITS else ""
