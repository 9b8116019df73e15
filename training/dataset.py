"""The dataset value: which pictures, with which captions, how often, at which size. No pixels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from .errors import AtelierError, require, require_number
from .images import IMAGE_EXTENSIONS, check_image

CAPTION_EXTENSIONS = (".txt", ".caption")


@dataclass(frozen=True)
class Sample:
    """One picture and what it shows."""

    path: Path
    caption: str
    num_repeats: int = 1
    """How often it is seen in one epoch."""


@dataclass(frozen=True)
class ImageDataset:
    """Pictures with captions and how to fit them; never changed after it was made."""

    samples: tuple[Sample, ...]
    resolution: int = 512
    """Side of the square every picture is fitted to, px."""
    name: str = "dataset"
    source: str = ""
    """Where the pictures come from; travels into the LoRA's metadata."""
    license: str = ""
    """Their licence; travels into the LoRA's metadata."""

    def __post_init__(self) -> None:
        require(len(self.samples) > 0, "The dataset holds no pictures.")
        require_number(
            "resolution", self.resolution, 64, 4096, "512 for SD1.5, 1024 for SDXL and Flux."
        )
        require(
            self.resolution % 8 == 0,
            f"resolution is {self.resolution}: the VAE needs a multiple of 8; "
            f"{self.resolution // 8 * 8} is near.",
        )

    @property
    def images_per_epoch(self) -> int:
        """Pictures seen in one epoch, repeats counted."""
        return sum(sample.num_repeats for sample in self.samples)

    def summary(self) -> str:
        """One or two lines for the node: how many pictures, and what a caption looks like."""
        return (
            f"{len(self.samples)} pictures, {self.images_per_epoch} an epoch, "
            f'{self.resolution} px\nfirst caption: "{self.samples[0].caption}"'
        )


def load_folder(
    folder: Path,
    *,
    resolution: int = 512,
    num_repeats: int = 1,
    class_tokens: str = "",
    source: str = "",
    license: str = "",
) -> ImageDataset:
    """Read a folder (and its subfolders) of pictures with captions beside them.

    ``fox.png`` takes its caption from the first line of ``fox.txt`` or ``fox.caption``. A trigger
    word is put before every caption (``trigger, caption``), and is the whole caption of a picture
    that has no file.

    Args:
        num_repeats: times each picture is seen in one epoch.
        class_tokens: the trigger word, or "".

    Raises:
        AtelierError: no such folder, no picture, a broken picture, or a picture with neither
            caption nor trigger word.
    """
    require_number(
        "num_repeats",
        num_repeats,
        1,
        10_000,
        "1 is usual; more balances a small folder against a large one.",
    )
    require(folder.is_dir(), f'folder: there is no folder "{folder}".')
    pictures = _visible_files(folder, IMAGE_EXTENSIONS)
    files = sorted(pictures, key=lambda path: (natural_key(path), str(path)))
    require(
        len(files) > 0,
        f'folder: "{folder}" holds no pictures ({", ".join(sorted(IMAGE_EXTENSIONS))}).',
    )
    samples, without_caption = [], []
    for path in files:
        check_image(path)
        caption = join_caption(class_tokens, read_caption(path))
        if not caption:
            without_caption.append(path.name)
        samples.append(Sample(path, caption, num_repeats))
    if without_caption:
        raise AtelierError(
            f"{len(without_caption)} of {len(files)} pictures have no caption: "
            f"{shorten(without_caption)}. Put a .txt file with the same name beside each, or fill "
            "in class_tokens (the trigger word)."
        )
    return ImageDataset(tuple(samples), resolution, folder.name, source, license)


def folder_fingerprint(folder: Path) -> str:
    """Changes when a picture or caption of the folder is added, edited or removed."""
    digest = hashlib.sha256()
    wanted = IMAGE_EXTENSIONS | set(CAPTION_EXTENSIONS)
    for path in sorted(_visible_files(folder, wanted)):
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_caption(image: Path) -> str:
    """The first line of the caption file beside ``image``, or "" when there is none.

    Raises:
        AtelierError: the caption file is not UTF-8 text.
    """
    for extension in CAPTION_EXTENSIONS:
        path = image.with_suffix(extension)
        if path.is_file():
            try:
                text = path.read_text("utf-8-sig")
            except UnicodeDecodeError as error:
                raise AtelierError(f'"{path}" is not UTF-8 text. Save it as UTF-8.') from error
            # UTF-16 without its mark passes for UTF-8, but has a zero byte beside every letter.
            require("\0" not in text, f'"{path}" is not UTF-8 text. Save it as UTF-8.')
            return text.strip().partition("\n")[0].strip()
    return ""


def join_caption(class_tokens: str, caption: str) -> str:
    """``trigger, caption``; a trigger that is a tag of the caption moves to the front."""
    trigger = _tags(class_tokens)
    if not trigger or _tags(caption)[: len(trigger)] == trigger:
        return caption
    if not any(tag in trigger for tag in _tags(caption)):
        return ", ".join([*trigger, caption]) if caption else ", ".join(trigger)
    return ", ".join(trigger + [tag for tag in _tags(caption) if tag not in trigger])


def _tags(caption: str) -> list[str]:
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts ``img2`` before ``img10``."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def shorten(names: list[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _visible_files(folder: Path, extensions: Set[str]) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in extensions and path.is_file() and not hidden:
            yield path
