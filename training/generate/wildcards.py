"""Wildcard files: text files of alternatives, one a line, that prompts name as ``__name__``."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import AtelierError, require
from .syntax import MOST_DEPTH, Option, parse_option

MOST_BYTES = 16 * 2**20
"""Of one file; a line is held in memory with what it stands for."""
MOST_NAMES = 20
"""Names that a message lists."""


def lines_of(text: str) -> list[str]:
    """The lines, stripped and each once; blank ones and those that begin with # are left out."""
    stripped = (line.strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in stripped if line and not line.startswith("#")))


class Wildcards:
    """Reads each file of a folder once.

    Args:
        folder: nothing outside it is read, symbolic links included: a graph can come from anyone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.known: dict[str, list[Option]] = {}
        self.reading: list[str] = []

    def lookup(self, name: str, depth: int) -> list[Option]:
        """The lines of ``<folder>/<name>.txt``, at least one.

        Args:
            depth: how many files and braces it is named within.

        Raises:
            AtelierError: there is no such file, it is empty or no text, or it names itself.
        """
        if name in self.known:
            return self.known[name]
        chain = " → ".join(f"__{n}__" for n in (*self.reading, name))
        require(name not in self.reading, f"The wildcard files name each other in a ring: {chain}.")
        require(depth <= MOST_DEPTH, f"Wildcard files lie too deep in each other: {chain}.")
        self.reading.append(name)
        where = f'The wildcard file "{name}.txt"'
        lines = lines_of(self._read(name))
        require(len(lines) > 0, f"{where} is empty. Write one alternative a line.")
        options = [parse_option(line, self.lookup, where, depth) for line in lines]
        self.reading.pop()
        self.known[name] = options
        return options

    def _read(self, name: str) -> str:
        path = Path(os.path.abspath(self.folder / f"{name}.txt"))
        # By its words first: asking the file system for //server/share would go there.
        inside = path.is_relative_to(self.folder) and "\0" not in name and ":" not in name
        if not inside or not _stays_below(path, self.folder):
            raise AtelierError(
                f"__{name}__ leads out of {self.folder}. Put the wildcard file into that folder."
            )
        if not path.is_file():
            raise AtelierError(
                f'There is no wildcard file "{name}.txt" in {self.folder}.{self._nearby()}'
            )
        require(path.stat().st_size <= MOST_BYTES, f'The wildcard file "{name}.txt" is too big.')
        try:
            return path.read_text("utf-8-sig")
        except (OSError, UnicodeError) as error:
            raise AtelierError(
                f'The wildcard file "{name}.txt" cannot be read: {error}. Save it as UTF-8 text.'
            ) from error

    def _nearby(self) -> str:
        if not self.folder.is_dir():
            return " Make that folder and put the file there, one word a line."
        files = (path.relative_to(self.folder) for path in self.folder.rglob("*.txt"))
        names = sorted(path.with_suffix("").as_posix() for path in files)
        listed = ", ".join(names[:MOST_NAMES])
        return f" It holds: {listed}." if names else " It holds no text file yet."


def folder_state(folder: Path) -> str:
    """Changes when a wildcard file does: names, sizes and times of all of them."""
    files = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


def _stays_below(path: Path, folder: Path) -> bool:
    """With symbolic links followed; asks the file system."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
