"""Render the demo pictures, in four styles, from unpacked npm packages of emoji.

Four packages are read, each unpacked in its own folder under one root folder (the README names
the versions). Every picture is the icon alone on white, cropped to its ink, scaled so that its
longer side fills the frame less a small margin, and centred, so that a subject sits in the same
place in every style and only the drawing differs.

    python pictures.py PACKAGES cache pictures.npz      # 64 x 64, for the two trainings
    python pictures.py PACKAGES images ../images        # the small training folders of the demo
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
#: Share of the frame left free on each side of the subject.
MARGIN = 0.05
#: Vector icons are drawn at this many pixels before they are cropped and reduced.
CANVAS = 512

#: Style -> prefix of its package's folder name.
PACKAGES = {
    "flat": "iconify-json-fluent-emoji-flat-",
    "ink": "iconify-json-fluent-emoji-high-contrast-",
    "noto": "iconify-json-noto-",
    "glossy": "lobehub-fluent-emoji-3d-",
}


@dataclass(frozen=True)
class Subject:
    """One subject: its caption word, code point, icon name a style, and its share of the demo."""

    name: str
    code_point: str
    icons: dict[str, str]
    split: str

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return self.name.replace(" ", "-")


def load_subjects(path: Path = HERE / "subjects.json") -> list[Subject]:
    """All subjects in the file's order."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return [Subject(**entry) for entry in document["subjects"]]


def package_folder(root: Path, style: str) -> Path:
    """The one unpacked package of a style under `root`, whatever its version."""
    found = sorted(root.glob(PACKAGES[style] + "[0-9]*"))
    if not found:
        raise FileNotFoundError(f"no folder {PACKAGES[style]}* in the packages folder")
    return found[-1]


@lru_cache(maxsize=8)
def _icon_set(folder: Path) -> dict:
    return json.loads((folder / "icons.json").read_text(encoding="utf-8"))


def _svg(folder: Path, icon: str) -> str:
    """A whole SVG document for one icon of an icon set, aliases followed."""
    icons = _icon_set(folder)
    while icon in icons.get("aliases", {}):
        icon = icons["aliases"][icon]["parent"]
    entry = icons["icons"][icon]
    width = entry.get("width", icons.get("width", 16))
    height = entry.get("height", icons.get("height", 16))
    left, top = entry.get("left", 0), entry.get("top", 0)
    body = entry["body"].replace("currentColor", "#000000")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
    )


def _source(root: Path, style: str, subject: Subject) -> Image.Image:
    """The icon as RGBA on nothing, at the size its package gives (or `CANVAS` for vectors)."""
    folder = package_folder(root, style)
    if style == "glossy":
        with Image.open(folder / "assets" / f"{subject.code_point}.webp") as picture:
            return picture.convert("RGBA")
    import resvg_py  # only the vector styles need it

    png = resvg_py.svg_to_bytes(svg_string=_svg(folder, subject.icons[style]), width=CANVAS)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def render(root: Path, style: str, subject: Subject, size: int) -> Image.Image:
    """One picture, RGB, `size` x `size`, the subject centred on white."""
    icon = _source(root, style, subject)
    # Faint shadows would move the box, so only clearly visible pixels count.
    box = icon.getchannel("A").point(lambda alpha: 255 if alpha > 24 else 0).getbbox()
    icon = icon.crop(box)
    side = round(max(icon.size) / (1 - 2 * MARGIN))
    frame = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    frame.alpha_composite(icon, ((side - icon.width) // 2, (side - icon.height) // 2))
    return frame.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def write_cache(root: Path, out: Path, size: int = 64) -> None:
    """Save uint8 arrays [subjects, size, size, 3], one a style, in one compressed file."""
    subjects = load_subjects()
    arrays = {
        style: np.stack([np.asarray(render(root, style, s, size)) for s in subjects])
        for style in PACKAGES
    }
    np.savez_compressed(out, **arrays)


def _save(picture: Image.Image, path: Path, caption: str) -> None:
    """Write an optimised PNG, and its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


def write_images(root: Path, out: Path, size: int = 128) -> None:
    """Write the demo's folders: the glossy style split in two, and the other styles beside."""
    for subject in load_subjects():
        if subject.split == "base":
            continue
        glossy = render(root, "glossy", subject, size)
        _save(glossy, out / "glossy" / subject.split / f"{subject.slug}.png", subject.name)
        for style in ("flat", "ink", "noto"):
            picture = render(root, style, subject, size)
            _save(picture, out / "other" / style / f"{subject.slug}.png", subject.name)


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description="Render the demo pictures.")
    parser.add_argument("packages", type=Path, help="folder with the unpacked npm packages")
    parser.add_argument("what", choices=("cache", "images"))
    parser.add_argument("out", type=Path)
    options = parser.parse_args(argv)
    (write_cache if options.what == "cache" else write_images)(options.packages, options.out)
    sys.stdout.write(f"wrote {options.out.name}\n")


if __name__ == "__main__":
    main()
