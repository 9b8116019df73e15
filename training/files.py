"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import AtelierError


def write_whole(path: Path, content: bytes) -> None:
    """A reader of ``path`` sees the old file or the new one, never a part.

    Raises:
        AtelierError: the disk is full or the folder cannot be written; the old file stays.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lend the path of another file, which becomes ``path`` when it was written without an error.

    Raises:
        AtelierError: as :func:`write_whole`.
    """
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise AtelierError(f'"{path}" could not be written: {error}.') from error
    finally:
        with suppress(OSError):  # there is none after a success
            partial.unlink()


def _flush_folder(folder: Path) -> None:
    """So that the new name outlives a power cut as well; Windows has no such thing."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def partial_of(path: Path) -> Path:
    """A file beside ``path`` that no other writer uses, in this process or another."""
    return path.with_name(f".{path.name[:64]}.{os.getpid()}.{secrets.token_hex(4)}.partial")
