"""What is measured of a picture, and that it is measured once."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from lora_atelier.training.cache import TensorCache
from lora_atelier.training.dataset import analysis
from lora_atelier.training.dataset.analysis import (
    Measurements,
    edges_of,
    measure,
    measure_dataset,
    working_size,
)
from lora_atelier.training.dataset.digests import ContentDigests
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels
from lora_atelier.training.dataset.report import BLURRED
from lora_atelier.training.dataset.samples import ImageDataset, Sample

EMOJI = Path(__file__).resolve().parents[3] / "demo" / "images"
STYLES = ("glossy/train", "other/flat", "other/ink", "other/noto")
WHITE = (255, 255, 255)


def disc(radius: float, sigma: float, side: int = 300, contrast: int = 200) -> ImagePixels:
    """A dark disc whose edge is blurred by a Gaussian of `sigma` px."""
    y, x = np.mgrid[:side, :side] - side / 2
    inside = (np.hypot(x, y) < radius).astype(float)
    grey = 240 - contrast * ndimage.gaussian_filter(inside, sigma)
    return ImagePixels(np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2))


def dataset_of(*images, **fields) -> ImageDataset:
    samples = [Sample(image, f"{i}.png", **fields) for i, image in enumerate(images)]
    return ImageDataset(tuple(samples))


def test_the_laplacian_and_the_gradient_of_a_dot_by_hand() -> None:
    """Nine levels in the middle of nothing. Laplacian: −36 there, 9 on its four sides, 0 in the
    corners: (36² + 4·9²)/9. Gradient, one way: two steps of 9 among six: 2·81/6, and so the other.
    """
    dot = np.zeros((3, 3))
    dot[1, 1] = 9
    found = edges_of(dot)
    assert found == pytest.approx((180, 54))
    assert found.sigma == pytest.approx((54 / 360) ** 0.5)
    assert edges_of(np.ones((3, 3))).sigma == 0


def test_the_laplacian_is_that_of_its_formula() -> None:
    grey = np.random.default_rng(0).uniform(0, 255, (17, 23))
    p = np.pad(grey, 1, mode="edge")
    by_hand = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * grey
    assert edges_of(grey).laplacian == pytest.approx(by_hand.var())


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_blur_is_the_width_of_the_edges(sigma: float) -> None:
    assert measure(disc(80, sigma), WHITE).blur == pytest.approx(sigma, rel=0.1)


def test_neither_contrast_nor_flat_ground_changes_the_blur() -> None:
    usual = measure(disc(80, 1.5), WHITE)
    faint, small = measure(disc(80, 1.5, contrast=80), WHITE), measure(disc(12, 1.5), WHITE)
    assert faint.blur == pytest.approx(usual.blur, rel=0.1)
    assert small.blur == pytest.approx(usual.blur, rel=0.1)
    assert (
        small.edges.laplacian < usual.edges.laplacian / 4
    )  # the plain variance takes it for blurred


def opened(path: Path, blur: float = 0) -> ImagePixels:
    image = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", image.size, WHITE)
    ground.alpha_composite(image)
    return ImagePixels(np.asarray(ground.convert("RGB").filter(ImageFilter.GaussianBlur(blur))))


@pytest.mark.parametrize("sigma", [3, 4, 6, 8, 12, 16])
def test_wide_blur_is_not_lost_in_the_rounding_to_8_bits(sigma: int) -> None:
    """The picture itself says less and less: from 8 px on it would pass for sharp."""
    found = measure(disc(80, sigma), WHITE)
    assert found.blur == pytest.approx(sigma, rel=0.3)
    assert found.blur > 2.5
    if sigma >= 8:
        assert found.edges.sigma < sigma / 2


def test_grain_does_not_hide_wide_blur() -> None:
    rng = np.random.default_rng(0)
    grain = disc(80, 8).pixels + rng.normal(0, 4, (300, 300, 1))
    found = measure(ImagePixels(grain.clip(0, 255).astype(np.uint8)), WHITE)
    assert found.edges.sigma < 0.5 < 3 < found.blur


def test_a_small_picture_is_not_measured_in_blocks() -> None:
    tiny = measure(disc(12, 0.5, side=40), WHITE)
    assert tiny.block_edges == (0, 0)
    assert tiny.blur == tiny.edges.sigma > 0


@pytest.mark.parametrize("style", STYLES)
def test_drawings_are_sharp_whatever_their_style_and_blurred_ones_are_not(style: str) -> None:
    files = sorted((EMOJI / style).glob("*.png"))[:12]
    assert len(files) == 12
    sharp = [measure(opened(path), WHITE).blur for path in files]
    blurred = [measure(opened(path, blur), WHITE).blur for path in files for blur in (2, 5, 9)]
    assert max(sharp) < 0.75 < BLURRED < 1.2 < min(blurred)


def test_a_large_picture_is_measured_at_512_px_and_a_small_one_as_it_is() -> None:
    assert working_size((4000, 1000)) == (512, 128)
    assert working_size((100, 512)) == (100, 512)
    assert working_size((9000, 3)) == (512, 1)
    large = measure(disc(320, 4.0, side=1200), WHITE)
    assert large.blur == pytest.approx(4.0 * 512 / 1200, rel=0.1)


def test_the_hash_is_that_of_imagehash() -> None:
    image = Image.fromarray(opened(EMOJI / "glossy/train/fox.png").pixels)
    found = measure(ImagePixels(np.asarray(image)), WHITE)
    assert f"{found.phash:016x}" == str(imagehash.phash(image))


def test_a_transparent_picture_is_measured_on_its_background() -> None:
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[10:30, 10:30] = 255
    white_on_white = measure(ImagePixels(pixels), WHITE)
    white_on_black = measure(ImagePixels(pixels), (0, 0, 0))
    assert white_on_white.blank
    assert white_on_white.blur == 0
    assert not white_on_black.blank
    assert white_on_white.colours.min() == 255
    assert white_on_black.colours.min() == 0


def test_the_same_numbers_come_back_from_the_cache(tmp_path: Path) -> None:
    pictures = dataset_of(disc(80, 1.5), disc(20, 0.5))
    cache = TensorCache(tmp_path)
    first = measure_dataset(pictures, ContentDigests(tmp_path), cache, lambda: None)
    again = measure_dataset(pictures, ContentDigests(tmp_path), cache, lambda: None)
    assert [_numbers(m) for m in first.measurements] == [_numbers(m) for m in again.measurements]
    fresh = [measure(s.image, WHITE) for s in pictures.samples]
    assert [_numbers(m) for m in first.measurements] == [_numbers(m) for m in fresh]


def _numbers(found: Measurements) -> tuple:
    numbers = (found.edges, found.block_edges, found.contrast, found.phash)
    return (*numbers, found.colours.tolist())


def test_what_is_in_the_cache_is_not_measured_again(tmp_path: Path, monkeypatch) -> None:
    files = _files(tmp_path / "in", 3)
    measured: list[str] = []
    real = analysis.measure

    def counting(picture, background):
        measured.append(Path(picture.path).name)
        return real(picture, background)

    monkeypatch.setattr(analysis, "measure", counting)
    _run(files, tmp_path)
    assert sorted(measured) == ["0.png", "1.png", "2.png"]
    measured.clear()
    Image.new("RGB", (30, 20), "red").save(files.samples[1].image.path)
    _run(files, tmp_path)
    assert measured == ["1.png"]
    measured.clear()
    on_black = replace(files.samples[0].fit, background=(0, 0, 0))
    _run(files.changed(replace(s, fit=on_black) for s in files.samples), tmp_path)
    assert len(measured) == 3


def test_a_broken_picture_is_named_without_its_path_and_the_others_are_measured(
    tmp_path: Path,
) -> None:
    files = _files(tmp_path / "in", 3)
    path = Path(files.samples[1].image.path)
    path.write_bytes(path.read_bytes()[:200])
    found = _run(files, tmp_path)
    assert [m is None for m in found.measurements] == [False, True, False]
    (problem,) = found.problems
    assert problem.name == "1.png"
    assert problem.reason.startswith('"1.png" is damaged or cut short')
    assert str(tmp_path) not in problem.reason


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    files = _files(tmp_path / "in", 2)
    Path(files.samples[0].image.path).unlink()
    found = _run(files, tmp_path)
    assert found.digests[0] is None
    assert found.digests[1] is not None
    assert found.problems[0].reason.startswith('"0.png" cannot be read')


def test_cancel_keeps_what_is_done(tmp_path: Path) -> None:
    files = _files(tmp_path / "in", 5)
    ticks = iter(range(5))

    def cancel() -> None:
        if next(ticks) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_dataset(files, ContentDigests(tmp_path), TensorCache(tmp_path / "c"), cancel)
    assert len(list((tmp_path / "c").rglob("*.safetensors"))) == 3


def test_every_picture_is_ticked_in_sets_of_any_size(tmp_path: Path) -> None:
    pictures = dataset_of(*[disc(3 + i % 5, 0.5, side=16) for i in range(analysis.IN_FLIGHT + 3)])
    ticks: list[None] = []
    found = measure_dataset(
        pictures, ContentDigests(tmp_path), TensorCache(tmp_path), lambda: ticks.append(None)
    )
    assert len(ticks) == len(found.measurements) == analysis.IN_FLIGHT + 3
    assert found.digests == tuple(s.image.digest for s in pictures.samples)
    assert found.measurements[7].edges == found.measurements[2].edges  # in their order


def _files(folder: Path, count: int) -> ImageDataset:
    folder.mkdir()
    samples = []
    for i in range(count):
        buffer = BytesIO()
        Image.fromarray(disc(10 + 20 * i, 1.0, side=120).pixels).save(buffer, "PNG")
        path = folder / f"{i}.png"
        path.write_bytes(buffer.getvalue())
        samples.append(Sample(ImageFile(str(path), (120, 120)), path.name))
    return ImageDataset(tuple(samples))


def _run(files: ImageDataset, folder: Path) -> analysis.Analysis:
    cache = TensorCache(folder / "cache")
    return measure_dataset(files, ContentDigests(folder / "cache"), cache, lambda: None)
