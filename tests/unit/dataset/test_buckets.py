"""Buckets against tables worked out by hand and against the formulas written as arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atelier.training.dataset.buckets import (
    Size,
    cover,
    make_buckets,
    select_bucket,
    select_without_upscale,
)

SD15 = (512, 256, 1024, 64)
"""The usual limits: resolution, shortest and longest side, steps."""
LIMITS = [
    SD15,
    (1024, 512, 2048, 64),
    (768, 320, 1536, 32),
    (520, 256, 1040, 8),
    (512, 512, 512, 64),
]
PICTURES = 10_000

sides = st.integers(1, 5000)
sizes = st.tuples(sides, sides)
steps = st.sampled_from([8, 16, 32, 64])


def _random_sizes(low: int, high: int) -> np.ndarray:
    """[N, 2] px; half of them multiples of 64, so that some are a bucket already."""
    found = np.random.default_rng(0).integers(low, high, (PICTURES, 2))
    found[::2] = np.maximum(found[::2] // 64 * 64, 64)
    return found


def _buckets_by_search(resolution: int, low: int, high: int, steps: int) -> list[Size]:
    """Every pair of sides on the grid, kept when one side is the longest the other allows."""
    side = np.arange(low, high + 1, steps)
    width, height = (axis.ravel() for axis in np.meshgrid(side, side))
    inside = width * height <= resolution**2
    widest = ~((width + steps) * height <= resolution**2) | (width + steps > high)
    highest = ~(width * (height + steps) <= resolution**2) | (height + steps > high)
    kept = inside & (widest | highest)
    square = resolution - resolution % steps
    return sorted(
        {*zip(width[kept].tolist(), height[kept].tolist(), strict=True), (square, square)}
    )


def _fit_by_arrays(sizes: np.ndarray, buckets: tuple[Size, ...]) -> tuple[np.ndarray, np.ndarray]:
    """D7 with scaling up: ([N, 2] buckets, [N, 2] scaled sizes)."""
    known = np.array(buckets)
    ratio = sizes[:, 0] / sizes[:, 1]
    nearest = np.abs((known[:, 0] / known[:, 1])[None] - ratio[:, None]).argmin(axis=1)
    same = (sizes[:, None] == known[None]).all(axis=2)
    bucket = known[np.where(same.any(axis=1), same.argmax(axis=1), nearest)]
    scale = (bucket / sizes).max(axis=1, keepdims=True)  # the larger one makes both sides reach
    return bucket, np.floor(sizes * scale + 0.5).astype(int)


def _fit_by_arrays_without_upscale(sizes: np.ndarray, resolution: int, steps: int):
    """D7 with bucket_no_upscale, for pictures with room for a step at least."""
    width, height = sizes.T.astype(float)
    ratio, area = width / height, resolution**2

    def on_grid(length: np.ndarray) -> np.ndarray:
        return np.floor(np.floor(length + 0.5) / steps) * steps

    ideal_width = np.sqrt(area * ratio)
    grid_width, grid_height = on_grid(ideal_width), on_grid(area / ideal_width)
    error_by_width = np.abs(grid_width / on_grid(grid_width / ratio) - ratio)
    error_by_height = np.abs(on_grid(grid_height * ratio) / grid_height - ratio)
    by_width = np.stack([grid_width, np.floor(grid_width / ratio + 0.5)], 1)
    by_height = np.stack([np.floor(grid_height * ratio + 0.5), grid_height], 1)
    scaled = np.where((error_by_width < error_by_height)[:, None], by_width, by_height)
    resized = np.where((width * height > area)[:, None], scaled, sizes).astype(int)
    return resized // steps * steps, resized


def test_the_buckets_of_512_px_are_those_counted_by_hand() -> None:
    """Widths 256, 320 … 1024; height = 262144 / width down to 64s: 1024, 768, 640, 576, 512 …"""
    upright = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768)]
    upright += [(384, 640), (448, 576)]
    assert make_buckets(*SD15) == tuple(
        sorted([*upright, (512, 512), *((height, width) for width, height in upright)])
    )


def test_a_resolution_off_the_grid_still_has_its_square() -> None:
    """520² = 270400: 256×1056 is longer than 1024, 448×603, and the square rounds down to 512."""
    assert make_buckets(520, 448, 576, 64) == ((448, 576), (512, 512), (576, 448))
    # 120² = 14400 holds 64×225 and 128×112: the square rounded down is no such pair.
    upright = [(64, 128), (64, 192)]
    assert make_buckets(120, 64, 192, 64) == ((64, 64), *upright, (128, 64), (192, 64))


@pytest.mark.parametrize("limits", LIMITS)
def test_the_buckets_equal_a_search_over_all_sizes(limits: tuple[int, ...]) -> None:
    assert list(make_buckets(*limits)) == _buckets_by_search(*limits)


@pytest.mark.parametrize(
    ("size", "bucket", "resized"),
    [
        ((512, 512), (512, 512), (512, 512)),
        ((3000, 3000), (512, 512), (512, 512)),
        ((10, 10), (512, 512), (512, 512)),
        ((704, 320), (704, 320), (704, 320)),  # is a bucket: as it is
        ((1920, 1080), (640, 384), (683, 384)),  # 1.778: 1.667 is nearer than 2.2; 384 / 1080
        ((1080, 1920), (384, 640), (384, 683)),  # 0.5625: 0.6 is nearer than 0.455; 384 / 1080
        ((600, 400), (640, 384), (640, 427)),  # 1.5: 1.667 is nearer than 1.286; 640 / 600
        ((1, 1000), (256, 1024), (256, 256000)),  # nothing is longer than 1:4
        ((1000, 1), (1024, 256), (256000, 256)),
    ],
)
def test_pictures_get_the_bucket_chosen_by_hand(size: Size, bucket: Size, resized: Size) -> None:
    assert select_bucket(size, make_buckets(*SD15)) == (bucket, resized)


def test_a_picture_that_is_a_bucket_stays_even_when_another_has_its_ratio() -> None:
    buckets = ((64, 64), (128, 128))
    assert select_bucket((128, 128), buckets) == ((128, 128), (128, 128))
    assert select_bucket((129, 129), buckets) == ((64, 64), (64, 64))


def test_of_two_buckets_equally_near_the_first_is_taken() -> None:
    """125 : 100 is 1.25, which is 0.75 from 0.5 and from 2."""
    assert select_bucket((125, 100), ((64, 128), (128, 64))).bucket == (64, 128)


@pytest.mark.parametrize(
    ("size", "bucket", "resized"),
    [
        ((300, 200), (256, 192), (300, 200)),  # small: kept, and cut to 64s
        ((512, 512), (512, 512), (512, 512)),
        ((600, 40), (576, 0), (600, 40)),  # no room
        ((1000, 1000), (512, 512), (512, 512)),
        # 682.7 by 384. By width 640 / 320 is 0.222 from 1.778, by height 640 / 384 only 0.111.
        ((1920, 1080), (640, 384), (683, 384)),
        # 384 by 682.7. By width 384 / 640 is 0.0375 from 0.5625, by height 320 / 640 is 0.0625.
        ((1080, 1920), (384, 640), (384, 683)),
        # 485.7 by 539.7. By width 448 / 448 is 0.1 from 0.9, by height 448 / 512 only 0.025.
        ((900, 1000), (448, 512), (461, 512)),
    ],
)
def test_without_upscaling_pictures_get_the_size_worked_out_by_hand(
    size: Size, bucket: Size, resized: Size
) -> None:
    assert select_without_upscale(size, 512, 64) == (bucket, resized)


@pytest.mark.parametrize("limits", LIMITS)
def test_the_choice_for_10000_pictures_equals_the_formulas(limits: tuple[int, ...]) -> None:
    buckets, pictures = make_buckets(*limits), _random_sizes(1, 4000)
    expected = np.concatenate(_fit_by_arrays(pictures, buckets), axis=1)
    chosen = [select_bucket(tuple(size), buckets) for size in pictures.tolist()]
    assert np.array_equal(np.array(chosen).reshape(-1, 4), expected)


@pytest.mark.parametrize(("resolution", "steps"), [(512, 64), (1024, 32), (768, 16), (520, 8)])
def test_without_upscaling_10000_pictures_equal_the_formulas(resolution: int, steps: int) -> None:
    pictures = _random_sizes(steps * 4, 4000)
    pictures = pictures[(pictures.max(axis=1) / pictures.min(axis=1)) < 8]  # longer: no room
    expected = np.concatenate(_fit_by_arrays_without_upscale(pictures, resolution, steps), axis=1)
    sizes = [tuple(size) for size in pictures.tolist()]
    chosen = [select_without_upscale(size, resolution, steps) for size in sizes]
    assert np.array_equal(np.array(chosen).reshape(-1, 4), expected)


@given(sizes, st.sampled_from(LIMITS))
def test_no_bucket_is_nearer_and_the_scaled_picture_covers_it(size: Size, limits) -> None:
    buckets = make_buckets(*limits)
    (width, height), resized = select_bucket(size, buckets)
    if size in buckets:
        assert (width, height) == resized == size
        return
    ratio = size[0] / size[1]
    assert abs(width / height - ratio) == min(abs(w / h - ratio) for w, h in buckets)
    assert resized[0] >= width and resized[1] >= height
    assert resized[0] == width or resized[1] == height


@given(sizes, sizes)
def test_a_picture_is_scaled_by_one_factor(size: Size, bucket: Size) -> None:
    resized = cover(size, bucket)
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    assert all(abs(r - s * scale) <= 0.5 + 1e-6 for r, s in zip(resized, size, strict=True))


@given(st.tuples(st.integers(1, 60_000), st.integers(1, 60_000)), st.integers(8, 256), steps)
@settings(max_examples=300)
def test_without_upscaling_nothing_grows_and_the_bucket_is_what_the_steps_leave(
    size: Size, eighths: int, steps: int
) -> None:
    """Also for sizes at which sd-scripts divides by zero."""
    resolution = max(eighths * 8, steps)
    bucket, resized = select_without_upscale(size, resolution, steps)
    assert bucket == tuple(side // steps * steps for side in resized)
    if size[0] * size[1] <= resolution**2:
        assert resized == size
    elif min(bucket) > 0:
        assert resized[0] <= size[0] + 1 and resized[1] <= size[1] + 1
        assert (bucket[0] - 1) * (bucket[1] - 1) <= resolution**2  # sides are rounded to whole px
        assert resized[0] % steps == 0 or resized[1] % steps == 0
