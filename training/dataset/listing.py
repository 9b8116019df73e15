"""Which files lie in a folder, without opening any of them or following a link out of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import AtelierError
from .samples import Problem


class Entry(NamedTuple):
    """A visible file below a folder."""

    name: str
    """Path below the folder, with forward slashes."""
    path: str
    size: int
    """Bytes."""
    mtime_ns: int
    suffix: str
    """The extension in lower case, with its dot; "" when there is none."""

    @property
    def stem(self) -> str:
        """The name without its extension."""
        return self.name[: len(self.name) - len(self.suffix)]


class Listing(NamedTuple):
    """All visible files of a folder and its subfolders, in no particular order."""

    entries: list[Entry]
    problems: list[Problem]
    """Links that lead out of the folders that may be read, and folders that may not be opened."""


def list_folder(folder: Path, within: Sequence[Path] = ()) -> Listing:
    """Every file that is not hidden; links are followed as long as they stay inside.

    Args:
        within: the folders that may be read; the folder itself when empty.
    """
    roots = [os.path.realpath(root) for root in (within or (folder,))]
    problems: list[Problem] = []
    entries = list(_walk(str(folder), "", roots, {os.path.realpath(folder)}, problems))
    return Listing(entries, problems)


def fingerprint(
    folder: Path,
    suffixes: frozenset[str],
    mask_folder: Path | None = None,
    within: Sequence[Path] = (),
) -> str:
    """Changes when a file with one of these extensions is added, edited or removed.

    Args:
        suffixes: in lower case, with their dots.
        mask_folder: a second folder that counts as well.
        within: as for :func:`list_folder`.
    """
    digest = hashlib.sha256()
    for place in (folder, mask_folder):
        if place is not None:
            digest.update(f"{place}\0".encode("utf-8", "surrogatepass"))
            for e in sorted(list_folder(place, within).entries):
                if e.suffix in suffixes:
                    line = f"{e.name}\0{e.size}\0{e.mtime_ns}\n"
                    digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _walk(
    path: str, prefix: str, roots: list[str], seen: set[str], problems: list[Problem]
) -> Iterator[Entry]:
    try:
        with os.scandir(path) as found:
            children = list(found)
    except OSError as error:
        name = prefix.rstrip("/") or "."
        problems.append(Problem(name, f'folder "{name}" cannot be opened: {error.strerror}.'))
        return
    for child in children:
        name = prefix + child.name
        if child.name.startswith("."):
            continue
        if not _is_text(child.name):
            shown = name.encode("utf-8", "replace").decode()
            problems.append(Problem(shown, f'"{shown}": its name is not UTF-8 text. Rename it.'))
            continue
        if child.is_symlink() and not _stays_inside(child.path, roots):
            if os.path.exists(child.path):
                reason = (
                    "is a link that leads out of the folders this pack may read. Copy the file "
                    "into the folder instead."
                )
            else:
                reason = "is a link to a file that is not there."
            problems.append(Problem(name, f'"{name}" {reason}'))
        elif child.is_dir():
            # A link may lead back to a folder above: each is entered once.
            real = os.path.realpath(child.path) if child.is_symlink() else child.path
            if real not in seen:
                seen.add(real)
                yield from _walk(child.path, f"{name}/", roots, seen, problems)
        elif child.is_file():
            stat = child.stat()
            dot = child.name.rfind(".")
            suffix = child.name[dot:].lower() if dot > 0 else ""
            yield Entry(name, child.path, stat.st_size, stat.st_mtime_ns, suffix)


def _is_text(name: str) -> bool:
    """False for a name whose bytes are no UTF-8: it could be written into no caption or file."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stays_inside(path: str, roots: list[str]) -> bool:
    real = os.path.realpath(path)
    if not os.path.exists(real):
        return False
    return any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in roots)


def inside(folder: str, name: str) -> str:
    """The name below the dataset folder that a metadata file in ``folder`` means.

    Args:
        folder: name of the metadata file's own folder, "" for the dataset folder.

    Raises:
        AtelierError: an absolute path, or one that climbs out of the dataset folder.
    """
    parts: list[str] = []
    written = name.replace("\\", "/")
    climbs = PurePosixPath(written).is_absolute() or ":" in written.partition("/")[0]
    for part in [] if climbs else [*folder.split("/"), *written.split("/")]:
        if part == "..":
            climbs = climbs or not parts
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    if climbs or not parts:
        raise AtelierError(f'"{name}" leads out of the folder. Write a path inside it.')
    return "/".join(parts)
