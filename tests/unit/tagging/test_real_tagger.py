"""A tagger with real weights on real photos: the names of the animals, and its memory back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from lora_atelier.training.dataset.pictures import (
    ImageFile,
    ImagePixels,
    check_image,
    open_picture,
)
from lora_atelier.training.dataset.samples import ImageDataset, Sample
from lora_atelier.training.tagging.auto_tag import auto_tag
from lora_atelier.training.tagging.tag_options import TagOptions
from lora_atelier.training.tagging.tag_table import read_tag_table
from lora_atelier.training.tagging.tagger import Tagger, TaggerFiles, tagger_files
from taggers import real_tagger, tuxpaint_photos

LABELS = {
    "birds/tucan.png": "toucan",
    "birds/magpie.png": "magpie",
    "birds/pink_flamingo.png": "flamingo",
    "birds/penguin.png": "king penguin",
    "birds/rainbow-lorikeet.png": "lorikeet",
    "mammals/equines/zebra.png": "zebra",
    "mammals/cats/tiger.png": "tiger",
    "mammals/apes/gorilla.png": "gorilla",
    "marsupials/koala.png": "koala",
    "marsupials/wombat.png": "wombat",
}


@pytest.fixture(scope="module")
def photos() -> ImageDataset:
    folder = tuxpaint_photos()
    if folder is None:
        pytest.skip("the package tuxpaint-stamps-default cannot be fetched here")
    paths = {name: folder / "animals" / name for name in LABELS}
    return ImageDataset(
        tuple(Sample(ImageFile(str(p), check_image(p)), name) for name, p in paths.items())
    )


@pytest.fixture(scope="module")
def files() -> TaggerFiles:
    pytest.importorskip("efficientnet_lite_pytorch")
    found = tagger_files(real_tagger())
    assert found is not None
    return found


def test_it_names_what_the_photos_show(
    files: TaggerFiles, photos: ImageDataset, tmp_path: Path
) -> None:
    tagged, report = auto_tag(photos, files, TagOptions(), tmp_path)
    assert {s.name: s.caption.split(", ")[0] for s in tagged.samples} == LABELS
    assert report.counts.keys() >= set(LABELS.values())


def test_the_order_of_the_colours_matters_to_it(
    files: TaggerFiles, photos: ImageDataset, tmp_path: Path
) -> None:
    """So the names above show that it is right."""

    def exchanged(sample: Sample) -> Sample:
        red, green, blue, alpha = open_picture(sample.image).convert("RGBA").split()
        pixels = np.asarray(Image.merge("RGBA", (blue, green, red, alpha)))
        return replace(sample, image=ImagePixels(pixels))

    swapped = photos.changed(map(exchanged, photos.samples))
    tagged, _ = auto_tag(swapped, files, TagOptions(), tmp_path)
    assert sum(LABELS[s.name] in s.caption.split(", ") for s in tagged.samples) < len(LABELS) - 1


def test_the_memory_comes_back(files: TaggerFiles) -> None:
    def rss() -> float:
        return psutil.Process(os.getpid()).memory_info().rss / (1 << 20)

    def used_and_left() -> tuple[float, float]:
        """MiB while the session is there, and afterwards."""
        with Tagger(files, read_tag_table(files.table)) as tagger:
            tagger.probabilities([np.zeros((448, 448, 3), np.float32)] * tagger.batch)
            used = rss()
        return used, rss()

    _, before = used_and_left()  # what ONNX Runtime keeps for itself is there now
    for _ in range(3):
        used, left = used_and_left()
        assert used > before + 20 and left < before + 5
