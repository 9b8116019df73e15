"""Folders of pictures in which every option of the dataset nodes finds something to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PICTURES, MASKS, OTHERS = "widgets/set", "widgets/masks", "widgets/others"
CAPTIONS = {
    f"{PICTURES}/fox.txt": "red, fox ||| wood, evening, red\na {sly|shy} fox",
    f"{PICTURES}/pond.txt": "pond, water, wood, {still|stormy} evening",
    f"{PICTURES}/snail.txt": "snail, leaf\na small snail, leaf",
    f"{OTHERS}/toad.txt": "toad, stone",
}


def write_pictures(root: Path) -> None:
    """Wide, tall and half transparent, small, without a caption; masks; a broken file."""
    for folder in (PICTURES, MASKS, OTHERS):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)

    def picture(name: str, width: int, height: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BILINEAR))
        Image.fromarray(pixels).save(root / name)
        return pixels

    picture(f"{PICTURES}/fox.png", 96, 64)
    picture(f"{PICTURES}/snail.png", 40, 32)
    picture(f"{PICTURES}/blue_bicycle.png", 64, 64)
    picture(f"{OTHERS}/toad.png", 64, 64)
    tall = picture(f"{PICTURES}/pond.png", 64, 96)
    upper = np.zeros((96, 64), np.uint8)
    upper[:40] = 255
    Image.fromarray(np.dstack([tall, upper])).save(root / PICTURES / "pond.png")
    Image.fromarray(upper).save(root / MASKS / "pond.png")
    Image.fromarray(np.ascontiguousarray(upper.T)).save(root / PICTURES / "fox.mask.png")
    (root / PICTURES / "broken.png").write_bytes(b"")
    for name, text in CAPTIONS.items():
        (root / name).write_text(text, "utf-8")
