"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from .errors import AtelierError


def write_whole(path: Path, content: bytes) -> None:
    """A reader of ``path`` sees the old file or the new one, never a part.

    Raises:
        AtelierError: the disk is full or the folder cannot be written; the old file stays.
    """
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # there may be none, or no such folder
            partial.unlink()
        raise AtelierError(f'"{path}" could not be written: {error}.') from error


def partial_of(path: Path) -> Path:
    """A file beside ``path`` that no other writer uses, in this process or another."""
    return path.with_name(f".{path.name[:64]}.{os.getpid()}.{secrets.token_hex(4)}.partial")
