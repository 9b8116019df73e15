"""What is measured of the style of one picture."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lora_atelier.training.curation.style_features import (
    LARGEST_SHARES,
    PATTERNS,
    Aspect,
    lab,
    style_features,
)

WHITE, RED = (255, 255, 255), (255, 0, 0)
COLOUR, PALETTE, SHADING, EDGES, TEXTURE = Aspect


def plain(colour: tuple[int, int, int], height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def ramp(step: int, side: int) -> np.ndarray:
    """Grey, brighter by ``step`` levels a px."""
    grey = (np.arange(side) * step).astype(np.uint8)
    return np.repeat(np.broadcast_to(grey, (side, side))[..., None], 3, axis=2)


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0, 0)),
    ],
)
def test_cielab_of_known_colours(
    rgb: tuple[int, int, int], expected: tuple[float, float, float]
) -> None:
    assert lab(plain(rgb, 1, 1))[:, 0, 0] == pytest.approx(expected, abs=0.05)


def test_cielab_is_that_of_its_formula_in_the_dark_too() -> None:
    pixels = noise(40)
    pixels[20:] //= 16
    value = pixels / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = linear @ np.array(matrix).T / (0.95047, 1, 1.08883)
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(root, 2, 0)
    expected = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])
    assert np.abs(lab(pixels) - expected).max() < 0.1


def test_the_ground_is_told_apart_from_the_colours_on_it() -> None:
    """Red covers a quarter or a sixteenth of the ground; that changes the palette alone."""
    large, small = plain(WHITE), plain(WHITE)
    large[:32, :32] = small[:16, :16] = RED
    first, second = style_features(large), style_features(small)
    assert first[COLOUR] == pytest.approx(second[COLOUR])
    assert first[COLOUR][:3] == pytest.approx((100, 0, 0), abs=0.05)
    lightness, a, b, chroma = first[COLOUR][3:].reshape(4, 5)
    assert np.unique(lightness) == pytest.approx(53.24, abs=0.05)
    assert np.unique(chroma) == pytest.approx(np.hypot(a[0], b[0]))
    assert first[PALETTE][0] == pytest.approx((1 / 4) ** 0.5)
    assert second[PALETTE][0] == pytest.approx((1 / 16) ** 0.5)
    assert first[PALETTE][1:-1] == pytest.approx(0)
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert first[PALETTE][-1] == pytest.approx(quarter)


def test_a_picture_of_one_colour_has_it_as_ground_and_as_rest_and_nothing_else() -> None:
    found = style_features(plain(RED))
    assert found[COLOUR][3:18:5] == pytest.approx(found[COLOUR][:3])
    assert found[PALETTE] == pytest.approx(np.zeros(len(LARGEST_SHARES) + 1))
    assert not found[SHADING].any() and not found[EDGES].any()
    flat = np.eye(PATTERNS)[0]
    assert found[TEXTURE] == pytest.approx(np.tile(flat, 2))


@pytest.mark.parametrize(("step", "side"), [(3, 64), (6, 32), (12, 16)])
def test_the_strength_of_a_ramp_is_in_its_class_at_each_scale(step: int, side: int) -> None:
    """Classes begin at ½, 1, 2, 4, … levels a px; a px of the next scale spans twice the levels.
    The two border columns have half the gradient: one class lower."""
    scales = style_features(ramp(step, side))[EDGES].reshape(3, 11)[:, :10] ** 2
    for i, shares in enumerate(scales):
        usual = int(np.log2(step / 0.5)) + i
        border = 2 / (side >> i)
        assert shares[usual] == pytest.approx(1 - border)
        assert shares[usual - 1] == pytest.approx(border)


def test_shading_is_the_change_of_colour_from_pixel_to_pixel() -> None:
    """Stripes that differ by ΔE, seen across and not along: half of the steps."""
    stripes = plain((119, 119, 119))
    stripes[:, ::2] = (129, 119, 119)
    one, two = lab(stripes[:1, :2])[:, 0].T
    change = float(np.linalg.norm(one - two))
    shares = style_features(stripes)[SHADING] ** 2
    place = int(np.floor(np.log2(change / 0.125)))
    assert shares[place] == pytest.approx(0.5)
    assert shares.sum() == pytest.approx(0.5)


def test_dark_lines_and_bright_lines_have_opposite_signs() -> None:
    dark = plain(WHITE)
    dark[:, 20] = 0
    found = [style_features(p)[EDGES].reshape(3, 11)[0, 10] for p in (dark, 255 - dark)]
    assert found[0] > 0.5
    assert found[1] == pytest.approx(-found[0], abs=1e-4)


def test_a_pattern_is_the_same_turned_by_a_quarter_and_faint_noise_is_none() -> None:
    drawing = plain(WHITE)
    drawing[10:30, 12:40] = 0
    drawing[40:44, 5:60] = (200, 30, 30)
    turned = np.rot90(drawing).copy()
    assert style_features(drawing)[TEXTURE] == pytest.approx(style_features(turned)[TEXTURE])
    rough = style_features(noise(64))[TEXTURE].reshape(2, PATTERNS) ** 2
    assert rough.sum(axis=1) == pytest.approx(np.ones(2))
    assert (rough[:, -1] > 0.3).all()  # of random pictures most patterns are not uniform


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (2, 5), (3, 2), (17, 31)])
def test_pictures_of_any_shape_have_as_many_finite_numbers(height: int, width: int) -> None:
    usual = style_features(noise(64))
    found = style_features(noise(300)[:height, :width])
    assert {a: len(v) for a, v in found.items()} == {a: len(v) for a, v in usual.items()}
    assert all(np.isfinite(v).all() and v.dtype == np.float32 for v in found.values())


@pytest.mark.parametrize("rgb", [(0, 0, 255), (255, 255, 255), (0, 255, 0), (255, 0, 255)])
def test_the_most_extreme_colours_lie_in_the_histogram(rgb: tuple[int, int, int]) -> None:
    """A bin outside would be another one's, or an error."""
    found = style_features(plain(rgb))
    assert found[COLOUR][:3] == pytest.approx(lab(plain(rgb, 1, 1))[:, 0, 0], abs=1e-3)


def test_a_picture_of_256_px_takes_milliseconds() -> None:
    pixels = noise(256)
    style_features(pixels)
    began = time.process_time()
    for _ in range(10):
        style_features(pixels)
    assert (time.process_time() - began) / 10 < 0.3  # 4 ms on an idle core
