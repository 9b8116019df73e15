"""The folder of generated pictures: what is there, what is missing, and never half of either.

A picture is written whole under a name that tells what it is, and then its line is added to
``metadata.jsonl``. Whenever the process is killed, the folder holds whole pictures, perhaps one
line too few, and perhaps half a line at the end: opening it again puts that right.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..dataset.fit import FitOptions
from ..dataset.folder import FolderOptions, load_folder
from ..dataset.metadata_lines import as_lines, json_line, metadata_lines
from ..dataset.samples import ImageDataset, Problem
from ..dataset.sidecars import METADATA
from ..errors import AtelierError
from ..files import write_whole
from .plan import Planned

PARTIAL = re.compile(r"\..+\.\d+\.[0-9a-f]+\.partial")
"""As ``partial_of`` names them; of a long name the end with its .png is cut off."""

Tick = Callable[[], None]
Record = Callable[[Planned, tuple[int, int]], dict[str, Any]]
"""The line of a picture of this width and height, px."""


class PictureFolder:
    """One set of pictures in its folder.

    Args:
        planned: with distinct file names.
        anew: what lies there counts for nothing, since nobody can tell what it was painted with.

    Raises:
        AtelierError: the folder cannot be written, or its metadata is of another kind.
    """

    def __init__(
        self,
        folder: Path,
        planned: Sequence[Planned],
        record: Record,
        anew: bool = False,
        tick: Tick = lambda: None,
    ) -> None:
        self.folder = folder
        self.planned = planned
        self.record = record
        self.missing: list[Planned] = []
        self.broken = 0
        """Files that are no whole pictures, and will be replaced."""
        _remove_partials(folder)
        sizes = self._look(tick) if not anew else {}
        self.missing = [picture for picture in planned if picture.file_name not in sizes]
        self.size = next(iter(sizes.values()), (0, 0))
        """Width and height of the pictures, px: all come from latents of one shape."""
        self._mend_metadata(sizes)

    @property
    def found(self) -> int:
        """Pictures that were there when it was opened."""
        return len(self.planned) - len(self.missing)

    def add(self, pictures: Sequence[tuple[Planned, tuple[int, int], bytes]]) -> None:
        """Keep pictures: which they are, width and height, and their PNG files.

        Raises:
            AtelierError: the disk is full or the folder cannot be written.
        """
        for picture, _, content in pictures:
            write_whole(self.folder / picture.file_name, content)
        self.size = pictures[0][1]
        lines = as_lines(json_line(self.record(picture, size)) for picture, size, _ in pictures)
        try:
            with (self.folder / METADATA).open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise AtelierError(
                f'"{self.folder / METADATA}" could not be written: {error}.'
            ) from error

    def dataset(
        self, resolution: int, index: Path | None = None, tick: Tick = lambda: None
    ) -> ImageDataset:
        """The planned pictures as Load Image Dataset reads them, and none of the others.

        Args:
            resolution, index: as its own.
        """
        options = FolderOptions(fit=FitOptions(resolutions=(resolution,)))
        loaded = load_folder(self.folder, options, index=index, tick=tick)
        names = {picture.file_name for picture in self.planned}

        def ours(one: Any) -> bool:
            return one.name in names

        problems: tuple[Problem, ...] = tuple(filter(ours, loaded.problems))
        return replace(loaded, samples=tuple(filter(ours, loaded.samples)), problems=problems)

    def others(self) -> int:
        """PNG files of the folder that are not planned."""
        names = {picture.file_name for picture in self.planned}
        return sum(path.name not in names for path in self.folder.glob("[!.]*.png"))

    def _look(self, tick: Tick) -> dict[str, tuple[int, int]]:
        """Planned picture that is there and whole -> its width and height."""
        sizes = {}
        for picture in self.planned:
            path = self.folder / picture.file_name
            if path.exists():
                try:
                    sizes[picture.file_name] = _size_if_whole(path)
                except AtelierError:
                    self.broken += 1
            tick()
        return sizes

    def _mend_metadata(self, sizes: dict[str, tuple[int, int]]) -> None:
        """A line for each picture that is there, today's caption in it, and for no other; whatever
        else is said of a picture stays."""
        path = self.folder / METADATA
        old = metadata_lines(path, may_be_torn=True) if path.is_file() else {}
        missing = {picture.file_name for picture in self.missing}
        lines = {
            name: line
            for name, line in old.items()
            if name not in missing and (self.folder / name).is_file()
        }
        for picture in self.planned:
            if (size := sizes.get(picture.file_name)) is not None:
                known = json.loads(lines.get(picture.file_name, "{}"))
                lines[picture.file_name] = json_line(known | self.record(picture, size))
        content = as_lines(lines.values())
        if not path.is_file() or path.read_bytes() != content:
            write_whole(path, content)


def _size_if_whole(path: Path) -> tuple[int, int]:
    """Width and height, px; checks every byte by the checksums of the format.

    Raises:
        AtelierError: it is broken.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            size = picture.size
            picture.verify()
        return size
    except Exception as error:  # Pillow raises SyntaxError, ValueError, struct.error and others
        raise AtelierError(f'"{path.name}" is no whole picture.') from error


def _remove_partials(folder: Path) -> None:
    """What a killed process has left half written."""
    for path in folder.glob(".*.partial"):
        if PARTIAL.fullmatch(path.name):
            path.unlink(missing_ok=True)
