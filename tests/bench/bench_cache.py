"""What it costs to fill the cache, next to the VAE alone, and to start from a full one.

The VAE is a TAESD, the lightest there is, so everything around it shows as much as it can. Cold
runs and the bare loop take turns in one process over the same pictures. Run it with `make bench`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from PIL import Image

from comfy_modules import make_importable

make_importable()

from lora_atelier.training.dataset.fit import FitOptions, Variant, place  # noqa: E402
from lora_atelier.training.dataset.folder import FolderOptions, load_folder  # noqa: E402
from lora_atelier.training.dataset.pictures import fitted_pixels, open_picture  # noqa: E402
from lora_atelier.training.host.latents import cached_images  # noqa: E402
from lora_atelier.training.host.session import start_run  # noqa: E402
from tiny_training import Parts, load_parts, quick_spec  # noqa: E402

ROUNDS = 6


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


def make_pictures(folder: Path, count: int, side: int) -> None:
    """JPEG pictures with some detail, captions beside them, a day old."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
        (folder / f"{i}.txt").write_text(f"picture {i % 50}")
        for file in (folder / f"{i}.jpg", folder / f"{i}.txt"):
            os.utime(file, (time.time() - 86400,) * 2)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.inference_mode()
def test_filling_the_cache_beside_the_vae_alone(parts: Parts, tmp_path: Path) -> None:
    make_pictures(tmp_path / "pictures", 16, 768)
    dataset = load_folder(tmp_path / "pictures", FolderOptions(fit=FitOptions((512,))))
    base = parts.model.model
    loaded = []
    for sample in dataset.samples:
        placement = place(sample.image.size, sample.fit, Variant(0), sample.name)
        loaded.append(fitted_pixels(open_picture(sample.image), placement, (255, 255, 255))[None])

    def bare() -> None:
        for pixels in loaded:
            base.process_latent_in(parts.vae.encode(pixels))

    bare()  # the VAE is loaded, the processor awake
    ratios = []
    for turn in range(ROUNDS):
        cache = tmp_path / f"cache{turn}"

        def filling(cache: Path = cache) -> None:
            cached_images(parts.vae, base, dataset, cache, _nothing)

        order = (bare, filling) if turn % 2 else (filling, bare)  # neither always comes first
        took = {work: seconds(work) for work in order}
        ratios.append(took[bare] / took[filling])
    sys.stdout.write(
        f"\nfilling the cache, 16 pictures of 768 px at 512: {median(ratios):.2f} of the bare "
        f"VAE loop's speed (of {ROUNDS}: {min(ratios):.2f} to {max(ratios):.2f}); the last bare "
        f"loop took {took[bare]:.2f} s\n"
    )


@torch.inference_mode()
def test_starting_over_1000_unchanged_pictures(parts: Parts, tmp_path: Path) -> None:
    make_pictures(tmp_path / "pictures", 1000, 96)
    options, index = FolderOptions(fit=FitOptions((64,))), tmp_path / "index"

    def begin() -> None:
        dataset = load_folder(tmp_path / "pictures", options, index=index)
        start_run(parts.model, parts.clip, parts.vae, dataset, quick_spec(), tmp_path / "cache")

    first = seconds(begin)
    again = [seconds(begin) for _ in range(3)]
    sys.stdout.write(
        f"\n1,000 pictures of 96 px, 50 captions: first start {first:.1f} s, "
        f"over the full cache {median(again):.2f} s\n"
    )


def _nothing() -> None:
    pass
