"""Which files lie in a folder, without opening any of them or following a link out of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from ..errors import AtelierError, require
from .samples import Problem

MOUNT_POINT = 0xA0000003
"""What Windows calls a junction, a link that ``is_symlink`` does not know (IO_REPARSE_TAG_...)."""

DRIVE = re.compile("[A-Za-z]:")


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
    """The visible files of a folder and its subfolders; in every folder by name."""

    entries: list[Entry]
    problems: list[Problem]
    """Links that lead out of the folders that may be read, and what cannot be looked at."""


class _Place(NamedTuple):
    """A folder that is to be looked into."""

    prefix: str
    """Its name below the folder that was asked for, with a slash; "" = that folder."""
    path: str
    real: str
    """Its path with all links followed."""


def list_folder(folder: Path, suffixes: Set[str], within: Sequence[Path] = ()) -> Listing:
    """Every file with one of these extensions that is not hidden.

    A folder is entered once, under its own name if it lies in ``folder``, else through the first
    link to it: so links may lead back to a folder above, and the disk's order does not matter.

    Args:
        suffixes: in lower case, with their dots.
        within: the folders that may be read; the folder itself when empty.

    Raises:
        AtelierError: the folder lies outside of ``within``.
    """
    roots = [os.path.realpath(root) for root in (within or (folder,))]
    top = _Place("", str(folder), os.path.realpath(folder))
    require(
        _below(top.real, roots),
        f'folder "{folder}" lies outside the folders this pack may read: {", ".join(roots)}.',
    )
    found = Listing([], [])
    seen: set[str] = set()
    folders, links = [top], []
    while folders or links:
        place = folders.pop() if folders else links.pop(links.index(min(links)))
        if place.real in seen:
            continue
        seen.add(place.real)
        for inner, is_link in _look_into(place, suffixes, roots, found):
            (links if is_link else folders).append(inner)
    return found


def _look_into(
    place: _Place, suffixes: Set[str], roots: list[str], found: Listing
) -> Iterator[tuple[_Place, bool]]:
    """Add the files to ``found``; the folders, and whether each is a link."""
    try:
        with os.scandir(place.path) as children:
            children = sorted(children, key=lambda child: child.name)
    except OSError as error:
        name = place.prefix.rstrip("/") or os.path.basename(place.path)
        reason = f'folder "{name}" cannot be opened: {error.strerror}.'
        found.problems.append(Problem(name, reason))
        return
    for child in children:
        name = place.prefix + child.name
        try:
            inner = _visit(child, name, place, suffixes, roots, found.entries)
        except AtelierError as error:
            found.problems.append(Problem(_shown(name), str(error)))
        except OSError as error:
            reason = f'"{_shown(name)}" cannot be read: {error.strerror}.'
            found.problems.append(Problem(_shown(name), reason))
        else:
            if inner is not None:
                yield inner


def _visit(
    child: os.DirEntry,
    name: str,
    place: _Place,
    suffixes: Set[str],
    roots: list[str],
    entries: list[Entry],
) -> tuple[_Place, bool] | None:
    """Add a file to ``entries``; a folder is answered, with whether it is a link."""
    dot = child.name.rfind(".")
    suffix = child.name[dot:].lower() if dot > 0 else ""
    is_folder = _is_folder(child)
    if child.name.startswith(".") or not (is_folder or suffix in suffixes):
        return None
    require(_is_text(name), f'"{_shown(name)}": its name is not UTF-8 text. Rename it.')
    is_link = _is_link(child)
    real = _real_target(child, name, roots) if is_link else ""
    if is_folder:
        real = real or os.path.join(place.real, child.name)
        return _Place(f"{name}/", child.path, real), is_link
    if child.is_file():
        stat = child.stat()
        entries.append(Entry(name, child.path, stat.st_size, stat.st_mtime_ns, suffix))
    return None


def _real_target(link: os.DirEntry, name: str, roots: list[str]) -> str:
    real = os.path.realpath(link.path)
    require(
        _below(real, roots),
        f'"{name}" is a link that leads out of the folders this pack may read. Copy what it points '
        "to into the folder instead.",
    )
    require(os.path.exists(real), f'"{name}" is a link to a file that is not there.')
    return real


def _is_folder(child: os.DirEntry) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _is_link(child: os.DirEntry) -> bool:
    if os.name != "nt":
        return child.is_symlink()
    tag = child.stat(follow_symlinks=False).st_reparse_tag
    return child.is_symlink() or tag == MOUNT_POINT


def _is_text(name: str) -> bool:
    """False for a name whose bytes are no UTF-8: it could be written into no caption or file."""
    return _shown(name) == name


def _shown(name: str) -> str:
    return name if name.isascii() else name.encode("utf-8", "replace").decode()


def _below(real: str, roots: list[str]) -> bool:
    real = os.path.normcase(real)
    roots = [os.path.normcase(root) for root in roots]
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
    climbs = written.startswith("/") or DRIVE.match(written) is not None
    for part in [] if climbs else [*folder.split("/"), *written.split("/")]:
        if part == "..":
            climbs = climbs or not parts
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    if climbs or not parts:
        raise AtelierError(f'"{name}" leads out of the folder. Write a path inside it.')
    return "/".join(parts)
