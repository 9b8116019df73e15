"""A dataset as a folder of ordinary files, which other trainers read too; whole or not at all.

Beside each picture (``fox.png``) lie its captions (``fox.txt``, a line each) and its mask
(``fox.mask.png``); ``metadata.jsonl`` holds these and repeats, role, weight, source, licence and
trigger word. Files of pictures are copied byte for byte. How they are fitted and what training does
to captions (Fit Images, Edit Captions from shuffle_caption on) are settings of the graph and not
saved.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import Image

from ..errors import AtelierError, require
from .metadata_lines import as_lines, json_line, metadata_lines, one_line
from .pictures import ImageFile, ImagePixels, Picture, image_suffixes, open_picture
from .samples import ImageDataset, Mask, Sample, shorten
from .sidecars import METADATA

MASK_SUFFIX = ".mask.png"
FORBIDDEN = re.compile(r'[<>:"|?*\\/\x00-\x1f\x7f\ud800-\udfff]')
"""On Windows, or anywhere."""
RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in "123456789")}
LONGEST_PART = 180
"""Bytes of UTF-8; file systems allow 255, and a suffix and a number are added."""

Tick = Callable[[], None]


class IfExists(str, Enum):
    """What to do when the folder is there already."""

    NEW_FOLDER = "new_folder"
    """Write to ``<folder>_2``, ``<folder>_3`` and so on."""
    STOP = "stop"
    REPLACE = "replace"
    """Replace the files of the same names, keep the others."""


@dataclass(frozen=True)
class SavedDataset:
    """What was written, and what the folder held before."""

    folder: Path
    pictures: int
    replaced: int = 0
    """Files of the same name that are replaced."""
    others: tuple[str, ...] = ()
    """Files of the folder that are no part of the dataset and stayed as they were."""
    own: bool = False
    """The folder is the one the pictures were loaded from."""

    def summary(self, folder: str) -> str:
        """For the node; ``folder`` is how it is called there."""
        text = f"{self.pictures} pictures → {folder}"
        if self.replaced:
            text += f"\n{self.replaced} files replaced"
        if self.own:
            text += (
                "\nThese are the files that were loaded: take Edit Captions out before the next "
                "run, or it edits the edited captions"
            )
        if self.others:
            text += f"\n{len(self.others)} other files stay there: {shorten(list(self.others))}"
        return text


@dataclass(frozen=True)
class _Files:
    """Where a sample goes, relative to the folder."""

    picture: str
    caption: str
    mask: str

    @classmethod
    def of(cls, stem: str, suffix: str) -> _Files:
        return cls(stem + suffix, f"{stem}.txt", stem + MASK_SUFFIX)


def save_dataset(
    dataset: ImageDataset, folder: Path, if_exists: IfExists, tick: Tick = lambda: None
) -> SavedDataset:
    """Write pictures, captions, masks and metadata.

    Everything is written beside ``folder`` first, so that a failure or a Cancel leaves it as it
    was.

    Args:
        tick: called after each picture; may raise to cancel.

    Raises:
        AtelierError: the folder exists and must not (``stop``), a file cannot be read or written.
    """
    if if_exists is IfExists.STOP:
        _require_new(folder)
    replace = if_exists is IfExists.REPLACE and folder.is_dir()
    with _partial_folder(folder) as partial:
        stems = file_stems(dataset.samples, _stems_there(folder) if replace else ())
        _write(dataset.samples, stems, partial, tick)
        if replace:
            return _put_into(folder, partial, dataset.samples)
        return SavedDataset(_put_beside(folder, partial, if_exists), len(dataset.samples))


def file_stems(samples: Sequence[Sample], there: Iterable[str] = ()) -> list[str]:
    """The path of each sample without its suffix: safe on every system, unique ignoring case.

    Args:
        there: stems of files that lie in the folder already; only a sample of that very name may
            take one of them.
    """
    wanted = [_safe_stem(sample.name) for sample in samples]
    others = {stem.casefold() for stem in chain(wanted, there)}
    taken: set[str] = set()
    stems = []
    for stem in wanted:
        if stem.casefold() in taken:
            numbered = (f"{stem}_{number}" for number in count(2))
            stem = next(s for s in numbered if s.casefold() not in taken | others)
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _stems_there(folder: Path) -> list[str]:
    return [_without_suffix(name) for name in _visible_files(folder)]


def _without_suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name[: len(name) - len(suffix)]


def _safe_stem(name: str) -> str:
    *folders, last = PurePosixPath(name).parts or (name,)
    if PurePosixPath(last).suffix.lower() in image_suffixes():
        last = last[: last.rindex(".")]
    last = re.sub(r"\.mask$", "_mask", _safe_part(last), flags=re.IGNORECASE)  # no mask of others
    return "/".join([*map(_safe_folder, folders), last])


def _safe_folder(part: str) -> str:
    part = _safe_part(part)
    a_file_s = PurePosixPath(part).suffix.lower() in image_suffixes() | {".txt", ".caption"}
    return part.replace(".", "_") if a_file_s else part


def _safe_part(part: str) -> str:
    part = FORBIDDEN.sub("_", unicodedata.normalize("NFC", part))
    part = part.encode()[:LONGEST_PART].decode(errors="ignore").strip(" .")
    if part.partition(".")[0].strip().casefold() in RESERVED:
        part = f"_{part}"
    return part or "_"


def _write(samples: Sequence[Sample], stems: Sequence[str], folder: Path, tick: Tick) -> None:
    # Readers of metadata files want one type in a column.
    several = any(len(sample.captions) > 1 for sample in samples)
    lines = []
    for sample, stem in zip(samples, stems, strict=True):
        files = _Files.of(stem, _suffix(sample.image))
        (folder / files.picture).parent.mkdir(parents=True, exist_ok=True)
        _write_picture(sample.image, folder / files.picture)
        captions = [one_line(caption) for caption in sample.captions]
        _write_whole(folder / files.caption, as_lines(captions))
        if isinstance(sample.mask, ImageFile | ImagePixels):
            _write_mask(sample.mask, folder / files.mask)
        lines.append(_metadata_line(sample, files, captions if several else captions[0]))
        tick()
    _write_whole(folder / METADATA, as_lines(lines))


def _metadata_line(sample: Sample, files: _Files, text: str | list[str]) -> str:
    values = {
        "file_name": files.picture,
        "text": text,
        "num_repeats": sample.num_repeats,
        "role": sample.role.value,
        "loss_weight": sample.loss_weight,
        "source": sample.source,
        "license": sample.license,
        "mask": _mask_entry(sample, files),
        "class_tokens": sample.class_tokens,
    }
    return json_line(values)


def _mask_entry(sample: Sample, files: _Files) -> str | None:
    if sample.mask is None:
        return None
    return sample.mask.value if isinstance(sample.mask, Mask) else files.mask


def _suffix(picture: Picture) -> str:
    return Path(picture.path).suffix if isinstance(picture, ImageFile) else ".png"


def _write_picture(picture: Picture, target: Path) -> None:
    if isinstance(picture, ImagePixels):
        _write_png(Image.fromarray(picture.pixels), target)
    else:
        _copy(Path(picture.path), target)


def _write_mask(mask: Picture, target: Path) -> None:
    if isinstance(mask, ImageFile) and Path(mask.path).suffix.lower() != target.suffix:
        _write_png(open_picture(mask), target)  # it is told by its name, so it must be a PNG
    else:
        _write_picture(mask, target)


def _copy(source: Path, target: Path) -> None:
    try:
        file = source.open("rb")
    except OSError as error:
        raise AtelierError(
            f'"{source}" cannot be read: {error}. It was there when the dataset was loaded.'
        ) from error
    with file, _new_file(target) as copy:
        shutil.copyfileobj(file, copy, 1 << 20)


def _write_png(image: Image.Image, target: Path) -> None:
    with _new_file(target) as file:
        image.save(file, "PNG")


def _write_whole(target: Path, content: bytes) -> None:
    with _new_file(target) as file:
        file.write(content)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open for writing, and on the disk when this returns."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside ``folder``, which is gone afterwards unless it was renamed."""
    partial = folder.with_name(f".{folder.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
    except OSError as error:
        raise AtelierError(
            f'The dataset could not be written to "{folder}": {error}. Nothing was left half done.'
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_new(folder: Path) -> None:
    require(
        not os.path.lexists(folder),
        f'folder: "{folder}" exists already. Give another name, or choose new_folder or replace '
        "in if_exists.",
    )


def _put_beside(folder: Path, partial: Path, if_exists: IfExists) -> Path:
    """Give the finished folder its name, or the next one that is free."""
    if if_exists is IfExists.STOP:
        _require_new(folder)  # it may have come while this one was written
    numbered = (folder.with_name(f"{folder.name}_{number}") for number in count(2))
    free = next(path for path in chain([folder], numbered) if not os.path.lexists(path))
    partial.rename(free)
    return free


def _put_into(folder: Path, partial: Path, samples: Sequence[Sample]) -> SavedDataset:
    """Move each file to its place, the metadata last; equal ones stay untouched, so that who
    watches the folder sees no change where there is none."""
    _keep_metadata_of_others(folder, partial)
    names = [name for name in _visible_files(partial) if name != METADATA] + [METADATA]
    root = Path(os.path.realpath(folder))
    for name in names:
        target = folder / name
        require(
            Path(os.path.realpath(target.parent)).is_relative_to(root),
            f'folder: "{target.parent}" is a link that leads out of "{folder}". Remove it.',
        )
        require(
            not target.is_dir(),
            f'folder: "{target}" is a folder, and a file of the dataset has this name. Rename it.',
        )
        target.parent.mkdir(parents=True, exist_ok=True)
    others = [name for name in _visible_files(folder) if name not in set(names)]
    own = any(_lies_in(sample.image, root) for sample in samples)
    names = [name for name in names if not _equal(partial / name, folder / name)]
    replaced = sum(os.path.lexists(folder / name) for name in names)
    for done, name in enumerate(names):
        try:
            os.replace(partial / name, folder / name)
        except OSError as error:
            raise AtelierError(
                f'"{folder / name}" could not be replaced: {error}. {done} of {len(names)} files '
                "were; queue again to replace the rest."
            ) from error
    return SavedDataset(folder, len(samples), replaced, tuple(others), own)


def _equal(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def _lies_in(picture: Picture, folder: Path) -> bool:
    """Whether a picture is read from a folder, given with its links resolved."""
    path = getattr(picture, "path", None)
    return path is not None and Path(os.path.realpath(path)).is_relative_to(folder)


def _keep_metadata_of_others(folder: Path, partial: Path) -> None:
    """What the folder's metadata says of pictures that stay there is said by the new one too, and
    of those that are written anew unchanged, whatever it says besides."""
    old = folder / METADATA
    if not old.is_file():
        return
    ours = metadata_lines(partial / METADATA)
    theirs = {name: line for name, line in metadata_lines(old).items() if (folder / name).is_file()}
    for name in ours.keys() & theirs.keys():
        if _equal(partial / name, folder / name):  # how it was generated is still true of it
            ours[name] = json_line(json.loads(theirs[name]) | json.loads(ours[name]))
    (partial / METADATA).unlink()
    _write_whole(partial / METADATA, as_lines((theirs | ours).values()))


def _visible_files(folder: Path) -> list[str]:
    """Paths within the folder, with forward slashes."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(p.as_posix() for p in found if not any(s.startswith(".") for s in p.parts))
