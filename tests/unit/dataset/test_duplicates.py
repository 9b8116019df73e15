"""Groups of equal and of nearly equal pictures."""

from __future__ import annotations

import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_atelier.training.dataset.analysis import Edges, Measurements, measure
from lora_atelier.training.dataset.duplicates import MAX_BITS, near_groups, same_files
from lora_atelier.training.dataset.pictures import ImagePixels

EMOJI = Path(__file__).resolve().parents[3] / "demo" / "images"
WHITE = (255, 255, 255)


def picture(phash: int, colour: int = 100, contrast: float = 50.0) -> Measurements:
    colours = np.full((8, 8, 3), colour, np.uint8)
    return Measurements(Edges(100, 50), Edges(0, 0), contrast, phash, colours)


def bits(*places: int) -> int:
    return sum(1 << place for place in places)


def are_near(a: Measurements, b: Measurements) -> bool:
    apart = np.abs(a.colours.astype(float) - b.colours.astype(float)).mean()
    return bin(a.phash ^ b.phash).count("1") <= 7 and apart <= 16


def by_brute_force(pictures: list[Measurements]) -> list[tuple[int, ...]]:
    groups: list[list[int]] = []
    for i, one in enumerate(pictures):
        group = next((g for g in groups if are_near(pictures[g[0]], one)), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return [tuple(group) for group in groups if len(group) > 1]


some_pictures = st.lists(
    st.builds(
        lambda base, flips, colour: picture(base ^ bits(*flips), colour),
        st.sampled_from([0, 0xF0F0F0F0F0F0F0F0, 0x0123456789ABCDEF]),
        st.sets(st.integers(0, 63), max_size=6),
        st.sampled_from([100, 110, 117, 130]),
    ),
    max_size=14,
)


@settings(max_examples=300, deadline=None)
@given(some_pictures)
def test_the_groups_are_those_of_comparing_all_with_all(pictures: list[Measurements]) -> None:
    assert near_groups(pictures) == by_brute_force(pictures)


@settings(max_examples=200, deadline=None)
@given(some_pictures)
def test_of_the_first_ones_no_two_are_near(pictures: list[Measurements]) -> None:
    groups = near_groups(pictures)
    again = {i for group in groups for i in group[1:]}
    kept = [one for i, one in enumerate(pictures) if i not in again]
    assert near_groups(kept) == []
    assert all(are_near(pictures[g[0]], pictures[i]) for g in groups for i in g)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), min_size=1, max_size=9))
def test_seven_bits_anywhere_are_found_and_eight_are_not(phash: int, flips: set[int]) -> None:
    found = near_groups([picture(phash), picture(phash ^ bits(*flips))])
    assert found == ([(0, 1)] if len(flips) <= MAX_BITS == 7 else [])


def test_seven_bits_spread_over_all_quarters_are_found() -> None:
    """2 + 2 + 2 + 1: only one quarter is alike up to one bit, whichever bit of it that is."""
    for one in range(64):
        two = [16 * quarter + i for quarter in range(4) if quarter != one // 16 for i in (3, 9)]
        assert near_groups([picture(0), picture(bits(one, *two))]) == [(0, 1)], one


def test_another_colour_is_another_picture() -> None:
    assert near_groups([picture(5, 100), picture(5, 116)]) == [(0, 1)]
    assert near_groups([picture(5, 100), picture(5, 117)]) == []


def test_small_differences_do_not_run_together() -> None:
    chain = [picture(0), picture(bits(*range(6))), picture(bits(*range(12)))]
    assert near_groups(chain) == [(0, 1)]


def test_blank_and_missing_pictures_are_near_to_nothing() -> None:
    blank = picture(0, contrast=0.5)
    assert near_groups([blank, blank, None, None, picture(0), blank, picture(0)]) == [(4, 6)]


def test_equal_files_are_grouped_in_order_and_unreadable_ones_are_not() -> None:
    assert same_files(["a", "b", "a", None, "c", None, "b", "a"]) == [(0, 2, 7), (1, 6)]


@pytest.mark.parametrize("style", ["glossy/train", "other/flat", "other/noto"])
def test_copies_of_real_drawings_are_found_and_different_drawings_are_not(style: str) -> None:
    images = [flat(path) for path in sorted((EMOJI / style).glob("*.png"))[:20]]
    copies = [jpeg(image) for image in images]
    found = near_groups([measured(image) for image in [*images, *copies]])
    pairs = {(i, i + len(images)) for i in range(len(images))}
    assert set(found) <= pairs
    assert len(found) >= 17  # a mirror-symmetric drawing has bits that are chance


def test_a_red_and_a_green_drawing_of_one_shape_are_two() -> None:
    fox = np.asarray(flat(EMOJI / "glossy/train/fox.png"))
    swapped = ImagePixels(np.ascontiguousarray(fox[..., [1, 0, 2]]))
    brighter = ImagePixels((fox * 0.96).astype(np.uint8))
    plain = measure(ImagePixels(fox), WHITE)
    assert near_groups([plain, measure(swapped, WHITE)]) == []
    assert near_groups([plain, measure(brighter, WHITE)]) == [(0, 1)]


def test_thousands_of_copies_or_of_colourings_do_not_take_a_comparison_of_all_with_all() -> None:
    rng = np.random.default_rng(0)
    copies = [picture(77) for _ in range(10_000)]
    colours = rng.integers(0, 256, (2_000, 8, 8, 3), dtype=np.uint8)
    colourings = [replace(picture(77), colours=one) for one in colours]
    began = time.perf_counter()
    assert near_groups(copies) == [tuple(range(10_000))]
    assert near_groups(colourings) == []
    assert time.perf_counter() - began < 20


def test_every_picture_is_ticked() -> None:
    ticks: list[None] = []
    near_groups([picture(0), None, picture(0, contrast=0)], lambda: ticks.append(None))
    assert len(ticks) == 3


def flat(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", image.size, WHITE)
    ground.alpha_composite(image)
    return ground.convert("RGB")


def jpeg(image: Image.Image) -> Image.Image:
    buffer = BytesIO()
    image.resize((200, 200)).save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def measured(image: Image.Image) -> Measurements:
    return measure(ImagePixels(np.asarray(image)), WHITE)
