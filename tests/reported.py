"""Datasets of pictures in memory, and reports on them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from lora_atelier.training.cache import TensorCache
from lora_atelier.training.dataset.analysis import measure_dataset
from lora_atelier.training.dataset.digests import ContentDigests
from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.pictures import ImagePixels
from lora_atelier.training.dataset.report import DatasetReport, examine
from lora_atelier.training.dataset.samples import ImageDataset, Sample

FIT = FitOptions(resolutions=(256,))


def tiles(seed: int, width: int = 256, height: int = 256) -> ImagePixels:
    """A picture of coloured tiles with sharp edges, another for every seed."""
    few = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    enlarged = Image.fromarray(few).resize((width, height), Image.Resampling.NEAREST)
    return ImagePixels(np.asarray(enlarged))


def blurred(picture: ImagePixels, sigma: float) -> ImagePixels:
    """The picture under a Gaussian of `sigma` px."""
    image = Image.fromarray(picture.pixels).filter(ImageFilter.GaussianBlur(sigma))
    return ImagePixels(np.asarray(image))


def sample(
    seed: int, caption: str | tuple[str, ...] = "a fox", size=(256, 256), **fields: Any
) -> Sample:
    """A sample `<seed>.png` of tiles that nothing is wrong with."""
    captions = (caption,) if isinstance(caption, str) else caption
    usual = {"fit": FIT, "source": "my photos", "license": "CC0", "may_be_skipped": True}
    return Sample(tiles(seed, *size), f"{seed}.png", captions, **(usual | fields))


def report_on(
    *samples: Sample,
    train_batch_size: int = 2,
    gradient_accumulation_steps: int = 1,
    name: str = "set",
    **more: Any,
) -> DatasetReport:
    """Measure and examine; `more` goes to the dataset (`problems`) or to `examine`."""
    problems = more.pop("problems", ())
    dataset = ImageDataset(samples, name, problems)
    with tempfile.TemporaryDirectory() as folder:
        cache, digests = TensorCache(Path(folder)), ContentDigests(Path(folder))
        analysis = measure_dataset(dataset, digests, cache, lambda: None)
    return examine(dataset, analysis, train_batch_size, gradient_accumulation_steps, **more)
