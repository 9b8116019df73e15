"""A folder of pictures, with captions and masks beside them, as a dataset."""

from __future__ import annotations

import gc
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from pathlib import Path

from ..errors import AtelierError, require
from .fit import FitOptions, fits
from .folder_index import FolderIndex
from .listing import Entry, list_folder
from .pictures import ImageFile, check_image, image_suffixes, same_shape
from .samples import (
    ImageDataset,
    Mask,
    Problem,
    Role,
    Sample,
    require_sample_numbers,
    shorten,
    split_validation,
)
from .sidecars import (
    CAPTION_SUFFIXES,
    LONGEST_CAPTION,
    METADATA,
    NOTHING,
    Facts,
    caption_lines,
    read_metadata,
    read_text,
)
from .tags import join_caption

MASK_SUFFIX = ".mask"
"""``fox.mask.png`` is the mask of ``fox.png`` and no picture of its own."""

MOST_REPEATS = 1000
"""A larger number before the underscore is a year (``2023_summer``), not a count of repeats."""

METADATA_SUFFIX = ".jsonl"

Tick = Callable[[], None]


class MaskSource(str, Enum):
    """Where the loss masks come from."""

    NONE = "none"
    ALPHA = "alpha"
    FILES = "files"


class CaptionSource(str, Enum):
    """What a picture is called that has no caption file."""

    FILES = "files"
    FILES_OR_NAME = "files_or_name"


class CaptionLines(str, Enum):
    """What several lines in a caption file mean."""

    ALTERNATIVES = "alternatives"
    FIRST = "first"


class UnusableFiles(str, Enum):
    """What a broken file does."""

    SKIP = "skip"
    STOP = "stop"


@dataclass(frozen=True)
class FolderOptions:
    """How a folder is read."""

    num_repeats: int = 1
    """Times the number of a kohya folder (``10_fox``)."""
    class_tokens: str = ""
    """Trigger word put before every caption."""
    source: str = ""
    license: str = ""
    role: Role = Role.TRAIN
    validation_fraction: float = 0.0
    """Share of the training pictures that is set aside."""
    captions: CaptionSource = CaptionSource.FILES
    caption_lines: CaptionLines = CaptionLines.ALTERNATIVES
    mask: MaskSource = MaskSource.NONE
    mask_folder: Path | None = None
    """Masks of the same names as the pictures; None = ``<name>.mask.png`` beside each."""
    unusable_files: UnusableFiles = UnusableFiles.SKIP
    loss_weight: float = 1.0
    fit: FitOptions = field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        require_sample_numbers(self.num_repeats, self.loss_weight)
        split_validation((), self.validation_fraction)  # judges the number


def load_folder(
    folder: Path,
    options: FolderOptions | None = None,
    *,
    within: Sequence[Path] = (),
    index: Path | None = None,
    tick: Tick = lambda: None,
) -> ImageDataset:
    """Read the names, sizes and captions of all pictures below a folder; no pixels.

    ``fox.png`` takes its caption from ``fox.txt`` or ``fox.caption``, else from ``text`` in a
    ``metadata.jsonl``, else from the name of the kohya folder it lies in (``10_red fox``), else,
    if so chosen, from its own name.

    Args:
        within: folders outside of which nothing is read; the folder itself when empty.
        index: folder in which what was read is remembered; None = nowhere.
        tick: called after each picture; may raise to end the work.

    Raises:
        AtelierError: no such folder, no picture, or a broken file when these are to stop it.
    """
    options = options or FolderOptions()
    require(os.path.isdir(folder), f'folder: there is no folder "{folder}".')
    folder = Path(os.path.abspath(folder))
    with _collector_paused():
        reader = _Reader(folder, options, within, index)
        samples = list(reader.samples(tick))
        reader.save_indices()
    problems = sorted(reader.problems, key=lambda problem: natural_key(problem.name))
    if problems and options.unusable_files is UnusableFiles.STOP:
        raise AtelierError(_all_of(problems))
    require(
        bool(samples or problems),
        f'folder: "{folder}" holds no pictures ({", ".join(sorted(image_suffixes()))}).',
    )
    return ImageDataset(
        split_validation(samples, options.validation_fraction), folder.name, tuple(problems)
    )


def _all_of(problems: Sequence[Problem]) -> str:
    """The first few in full."""
    count, rest = len(problems), len(problems) - 3
    reasons = " ".join(problem.reason for problem in problems[:3])
    return (
        f"{count} {'file' if count == 1 else 'files'} of the folder cannot be used: {reasons}"
        f"{f' And {rest} more.' if rest > 0 else ''} Mend or remove them, or set unusable_files to "
        "skip."
    )


def folder_fingerprint(
    folder: Path, mask_folder: Path | None = None, within: Sequence[Path] = ()
) -> str:
    """Changes when a picture, caption, mask or metadata file is added, edited or removed.

    Args:
        within: as for :func:`load_folder`; files behind links that it follows count as well.
    """
    digest = hashlib.sha256()
    for place in filter(None, (folder, mask_folder)):
        found = _Files(place, within)
        entries = [*found.images.values()]
        if place is folder:
            entries += [*found.captions(), *found.metadata]
        digest.update(f"{os.path.abspath(place)}\0".encode("utf-8", "surrogatepass"))
        for entry in sorted(entries):
            digest.update(f"{entry.name}\0{entry.size}\0{entry.mtime_ns}\n".encode())
        for problem in found.problems:
            digest.update(f"{problem.name}\0{problem.reason}\n".encode())
    return digest.hexdigest()


class _Files:
    """What lies in a folder, told by the names alone."""

    def __init__(self, folder: Path, within: Sequence[Path]) -> None:
        self.images: dict[str, Entry] = {}
        """By name."""
        self.texts: dict[str, Entry] = {}
        """By name, the extension in lower case."""
        self.metadata: list[Entry] = []
        suffixes = image_suffixes()
        found = list_folder(folder, suffixes | {*CAPTION_SUFFIXES, METADATA_SUFFIX}, within)
        self.problems = found.problems
        for entry in found.entries:
            if entry.suffix in suffixes:
                self.images[entry.name] = entry
            elif entry.suffix in CAPTION_SUFFIXES:
                self.texts[entry.stem + entry.suffix] = entry
            elif entry.name.rpartition("/")[2].lower() == METADATA:
                self.metadata.append(entry)

    def captions(self) -> list[Entry]:
        """The texts that have a picture."""
        stems = {entry.stem for entry in self.images.values()}
        return [entry for entry in self.texts.values() if entry.stem in stems]


class _Reader:
    """One pass over a folder."""

    def __init__(
        self, folder: Path, options: FolderOptions, within: Sequence[Path], index: Path | None
    ) -> None:
        self.options = options
        self.name = folder.name
        self.files = _Files(folder, within)
        self.problems: list[Problem] = list(self.files.problems)
        self.index = FolderIndex(folder, index)
        self.facts: dict[str, Facts | AtelierError] = {}
        for entry in self.files.metadata:
            self._read_metadata(entry)
        self.inner_masks = _inner_folder(folder, options.mask_folder)
        self.masks: dict[str, Entry] = {}
        self.mask_index = self.index
        if options.mask is MaskSource.FILES and options.mask_folder is not None:
            self.mask_index = FolderIndex(options.mask_folder, index)
            self.masks = self._masks_of_folder(options.mask_folder, within)
        elif options.mask is MaskSource.FILES:
            self.masks = self._masks_beside()

    def save_indices(self) -> None:
        """Remember what was read."""
        files = self.files
        if self.mask_index is not self.index:
            self.mask_index.save(entry.name for entry in self.masks.values())
        self.index.save([*files.images, *(entry.name for entry in files.texts.values())])

    def pictures(self) -> list[Entry]:
        """In natural order, without the masks."""
        masks = {facts.mask for facts in self.facts.values() if isinstance(facts, Facts)}
        pictures = [
            entry
            for entry in self.files.images.values()
            if not entry.stem.lower().endswith(MASK_SUFFIX)
            and entry.name not in masks
            and not (self.inner_masks and entry.name.startswith(self.inner_masks))
        ]
        return sorted(pictures, key=lambda entry: (natural_key(entry.name), entry.name))

    def samples(self, tick: Tick) -> Iterator[Sample]:
        """All pictures that are whole; what is wrong with the others is noted."""
        for entry in self.pictures():
            sample = self.sample(entry)
            if sample is not None:
                yield sample
            tick()

    def sample(self, entry: Entry) -> Sample | None:
        """None when something about the picture is broken, which is noted."""
        options, facts = self.options, self.facts.get(entry.name, NOTHING)
        try:
            if isinstance(facts, AtelierError):
                raise facts
            size = _size(self.index, entry)
            captions = self._captions(entry, facts)
            mask = self._mask(entry, facts)
        except AtelierError as error:
            self.problems.append(Problem(entry.name, str(error)))
            return None
        if not fits(size, options.fit):
            reason = (
                f'"{entry.name}" ({size[0]}×{size[1]} px) is too narrow for one step of '
                "bucket_reso_steps. Enlarge it, or turn bucket_no_upscale off."
            )
            self.problems.append(Problem(entry.name, reason))
            return None
        repeats = options.num_repeats * self._kohya(entry)[0]
        weight = options.loss_weight if facts.loss_weight is None else facts.loss_weight
        return Sample(
            image=ImageFile(entry.path, size),
            name=entry.name,
            captions=captions,
            num_repeats=repeats if facts.num_repeats is None else facts.num_repeats,
            role=facts.role if facts.role and options.role is Role.TRAIN else options.role,
            loss_weight=weight,
            mask=mask,
            source=options.source if facts.source is None else facts.source,
            license=options.license if facts.license is None else facts.license,
            fit=options.fit,
            may_be_skipped=options.unusable_files is UnusableFiles.SKIP,
            class_tokens=self._class_tokens(entry, facts, captions),
        )

    def _kohya(self, entry: Entry) -> tuple[int, str]:
        return kohya_folder(f"{self.name}/{entry.name}")

    def _captions(self, entry: Entry, facts: Facts) -> tuple[str, ...]:
        lines: tuple[str, ...] = ()
        for suffix in CAPTION_SUFFIXES:
            beside = self.files.texts.get(entry.stem + suffix)
            if beside is not None:
                lines = caption_lines(self.index.remembered(beside, _read_caption))
                break
        else:
            lines = facts.captions or ()
        if self.options.caption_lines is CaptionLines.FIRST:
            lines = lines[:1]
        if not lines:
            lines = (self._caption_without_file(entry),)
        trigger = self.options.class_tokens
        return tuple(join_caption(trigger, line) for line in lines) if trigger else lines

    def _caption_without_file(self, entry: Entry) -> str:
        _, class_tokens = self._kohya(entry)
        if class_tokens or self.options.captions is CaptionSource.FILES:
            return class_tokens
        return entry.stem.rpartition("/")[2].replace("_", " ").strip()

    def _class_tokens(self, entry: Entry, facts: Facts, captions: tuple[str, ...]) -> str:
        """The trigger word in the captions: the one put there, or the one that they came with."""
        of_folder = self._kohya(entry)[1]
        came_with = of_folder if captions == (of_folder,) else ""
        return self.options.class_tokens.strip() or facts.class_tokens or came_with

    def _mask(self, entry: Entry, facts: Facts) -> ImageFile | Mask | None:
        if self.options.mask is MaskSource.ALPHA:
            return Mask.ALPHA
        if self.options.mask is MaskSource.NONE:
            return None
        if facts.mask is Mask.ALPHA:
            return Mask.ALPHA
        if facts.mask is not None:
            named = self.files.images.get(facts.mask)
            if named is None:
                raise AtelierError(
                    f'"{entry.name}" has the mask "{facts.mask}" in its metadata, which is not '
                    "there. Put it back, or remove it from the metadata."
                )
            return self._of_its_shape(named, self.index, entry)
        found = self.masks.get(entry.name) or self.masks.get(entry.stem)
        return None if found is None else self._of_its_shape(found, self.mask_index, entry)

    def _of_its_shape(self, mask: Entry, index: FolderIndex, entry: Entry) -> ImageFile:
        size, of_picture = _size(index, mask), _size(self.index, entry)
        require(
            same_shape(size, of_picture),
            f'"{mask.name}" is {size[0]}×{size[1]} px, its picture "{entry.name}" '
            f"{of_picture[0]}×{of_picture[1]} px. A mask must have the shape of its picture.",
        )
        return ImageFile(mask.path, size)

    def _masks_beside(self) -> dict[str, Entry]:
        """Name of a picture without its extension -> its mask."""
        images = self.files.images.values()
        masks = (entry for entry in images if entry.stem.lower().endswith(MASK_SUFFIX))
        return {entry.stem[: -len(MASK_SUFFIX)]: entry for entry in masks}

    def _masks_of_folder(self, place: Path, within: Sequence[Path]) -> dict[str, Entry]:
        """Name of a picture, with and without its extension -> its mask."""
        require(os.path.isdir(place), f'mask_folder: there is no folder "{place}".')
        found = list_folder(place, image_suffixes(), within)
        self.problems += found.problems
        by_stem = {entry.stem: entry for entry in found.entries}
        return by_stem | {entry.name: entry for entry in found.entries}

    def _read_metadata(self, entry: Entry) -> None:
        try:
            facts, problems = read_metadata(read_text(entry), entry)
        except AtelierError as error:
            self.problems.append(Problem(entry.name, str(error)))
            return
        self.facts |= facts
        self.problems += problems
        missing = [name for name in facts if name not in self.files.images]
        if missing:
            reason = (
                f'"{entry.name}" tells of pictures that are not there: '
                f"{shorten(missing)}. Put them back, or remove their lines."
            )
            self.problems.append(Problem(entry.name, reason))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Of 100,000 pictures, all objects stay: looking for garbage among them again and again would
    take a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _inner_folder(folder: Path, mask_folder: Path | None) -> str:
    """What the names of masks in the dataset folder begin with; "" when they lie elsewhere."""
    if mask_folder is None:
        return ""
    inner, outer = Path(os.path.realpath(mask_folder)), Path(os.path.realpath(folder))
    require(
        inner != outer,
        "mask_folder is the folder of the pictures itself. Give the masks a folder of their own, "
        "or leave it empty and call them fox.mask.png.",
    )
    return f"{inner.relative_to(outer).as_posix()}/" if inner.is_relative_to(outer) else ""


def _size(index: FolderIndex, entry: Entry) -> tuple[int, int]:
    width, height = index.remembered(entry, _read_size)
    return (width, height)


def _read_size(entry: Entry) -> tuple[int, int]:
    return check_image(entry.path, entry.name)


def _read_caption(entry: Entry) -> str:
    return read_text(entry, LONGEST_CAPTION)


def kohya_folder(name: str) -> tuple[int, str]:
    """(repeats, class tokens) that the nearest folder called ``N_name`` gives a file; else (1, "").

    Source: kohya-ss/sd-scripts, library/config_util.py, which leaves out folders without a number.
    """
    return _kohya_folder(name.rpartition("/")[0])


@lru_cache(maxsize=4096)
def _kohya_folder(path: str) -> tuple[int, str]:
    for part in reversed(path.split("/")):
        number, underscore, rest = part.partition("_")
        if underscore and number.isdecimal() and 1 <= int(number) <= MOST_REPEATS:
            return int(number), rest.strip()
    return 1, ""


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts ``img2`` before ``img10``."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]
