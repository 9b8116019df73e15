"""The measures against values worked out by hand, and cases made so that the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from lora_atelier.training.evaluation.features import (
    GRID,
    StyleSpace,
    common_side,
    layout_distances,
    layout_vectors,
    seen,
)
from lora_atelier.training.evaluation.measures import (
    CLEARLY,
    Estimate,
    copy_distance,
    distances,
    estimate,
    gains,
    kept,
    nearest_pairs,
    room,
    variety,
)


def vectors(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, float)


def smooth(seed: int, side: int = 64) -> np.ndarray:
    """A picture of soft blobs, [side, side, 3] uint8."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def layouts(*pictures: np.ndarray) -> np.ndarray:
    return np.stack([seen(picture, 64).layout for picture in pictures])


def test_mean_and_standard_error_of_one_number_a_picture() -> None:
    found = estimate(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found.value == 3 and found.error == pytest.approx(math.sqrt(14 / 3) / 2)
    assert Estimate(0.41, 0.2).is_clear and not Estimate(0.4, 0.2).is_clear
    assert not estimate(np.array([5.0])).is_clear


def test_distances_are_half_the_squares_and_of_unit_vectors_one_minus_the_cosine() -> None:
    assert distances(vectors((0, 0)), vectors((3, 4), (1, 0))).tolist() == [[12.5, 0.5]]
    tilted = vectors((0.6, 0.8))
    assert distances(tilted, vectors((1, 0)))[0, 0] == pytest.approx(0.4)


def test_gain_is_the_share_of_the_way_from_the_base_to_the_training_pictures() -> None:
    training = vectors((1, 0), (-1, 0))  # ½·2² = 2 apart
    base = vectors((3, 0), (0, 3))  # (2 + 8)/2 = 5 and (5 + 5)/2 = 5 away
    way = room(base, training)
    assert way == pytest.approx(math.log(5 / 2))
    nearer = vectors((math.sqrt(3), 0), (0, 0))  # ½·3 + ½ = 2, and ½
    assert gains(nearer, base, training, way) == pytest.approx([1, math.log(10) / math.log(2.5)])
    assert gains(base, base, training, way).tolist() == [0, 0]


def test_where_the_base_is_there_already_there_is_no_way_to_go() -> None:
    training = np.random.default_rng(5).standard_normal((40, 3))
    assert room(training + 0.1, training) is None
    assert room(vectors((9, 9, 9)), training[:1]) is None  # one says nothing of how alike they are
    assert room(vectors((9, 9, 9), (9, 9, 8)), training) is not None


def test_prompts_are_kept_when_each_picture_is_like_the_bases_of_its_prompt() -> None:
    base = vectors((1, 0, 0), (0, 1, 0), (0, 0, 1))
    style = np.array([5.0, -3.0, 2.0])  # what all share has no part
    assert kept(base + style, base, [0, 1, 2]) == Estimate(1.0, 0.0)
    assert kept(np.roll(base, 1, axis=0), base, [0, 1, 2]).value == 0.25  # a tie, and one nearer
    assert kept(np.tile(base[:1], (3, 1)), base, [0, 1, 2]).value == 0.5  # all alike
    assert kept(base, base, [4, 4, 4]) is None


def test_kept_counts_the_other_prompts_that_are_further_away() -> None:
    base = vectors((-3.0,), (0.0,), (3.0,))
    swapped = vectors((-3.0,), (3.0,), (0.0,))
    # The first: both others are further, 1. The second, at 3: its own at 0; one is nearer, one
    # further, ½. The third, at 0: its own at 3 is as far as the first at -3, a tie, and the second
    # is nearer: ¼.
    found = kept(swapped, base, [0, 1, 2])
    assert found.value == pytest.approx((1 + 0.5 + 0.25) / 3)


def test_kept_takes_all_pictures_of_a_prompt_together() -> None:
    base = vectors((-3.0,), (3.0,), (-1.0,), (1.0,))
    assert kept(base, base, [0, 1, 0, 1]).value == 1.0
    assert kept(base, base, [0, 1, 1, 0]).value == 0.5


def test_variety_is_the_mean_distance_of_two_pictures() -> None:
    assert variety(vectors((0.0,), (1.0,), (3.0,))) == pytest.approx((0.5 + 4.5 + 2) / 3)
    assert variety(np.ones((3, 4))) == 0


def test_the_copy_distance_that_is_no_copy_is_the_least_of_training_pictures_and_base() -> None:
    training = np.abs(np.subtract.outer([0.0, 3.0, 7.0], [0.0, 3.0, 7.0]))
    assert copy_distance(training, np.full((1, 3), 9.0)) == pytest.approx(CLEARLY * 3)
    assert copy_distance(training, np.array([[9.0, 2.5, 9.0]])) == pytest.approx(CLEARLY * 2.5)
    assert copy_distance(np.zeros((1, 1)), np.array([[4.0], [5.0]])) == pytest.approx(CLEARLY * 4)


def test_training_pictures_that_are_there_twice_do_not_hide_copies() -> None:
    places = [0.0, 0.01, 3.0, 7.0, 12.0]
    training = np.abs(np.subtract.outer(places, places))
    assert copy_distance(training, np.full((1, 5), 9.0)) == pytest.approx(CLEARLY * 2.99)


def test_a_copy_is_one_in_the_eyes_of_all_measures_for_the_same_picture() -> None:
    by_layout = np.array([[0.1, 0.9], [0.1, 0.9], [0.1, 0.4]])
    by_encoder = np.array([[0.2, 0.9], [0.8, 0.1], [0.6, 0.2]])
    pairs = nearest_pairs([(by_layout, 0.5), (by_encoder, 0.4)])
    assert [(p.picture, p.training) for p in pairs] == [(0, 0), (1, 1), (2, 1)]
    assert [p.nearness for p in pairs] == pytest.approx([0.5, 1.8, 0.8])
    assert nearest_pairs([(by_layout, 0.0)])[0].nearness == math.inf  # nothing is nearer than 0


def test_copies_are_found_moved_mirrored_and_in_other_light() -> None:
    picture = smooth(1, 80)
    others = layouts(picture, smooth(2, 80), smooth(3, 80))
    moved = np.roll(picture, (6, -6), axis=(0, 1))
    dark = (picture * 0.5 + 60).astype(np.uint8)
    for copy, most in ((picture, 1e-5), (picture[:, ::-1], 1e-5), (dark, 1e-3), (moved, 0.2)):
        apart = layout_distances(layouts(copy), others)[0]
        assert apart[0] < most and apart[1:].min() > 0.4, apart


def test_plain_grounds_are_like_nothing() -> None:
    plain = np.full((64, 64, 3), 250, np.uint8)
    apart = layout_distances(layouts(plain, smooth(1)), layouts(plain, smooth(1)))
    assert apart[0].tolist() == [1, 1] and apart[1, 0] == 1 and apart[1, 1] < 1e-5
    assert not layout_vectors(layouts(plain)).any()
    assert layout_vectors(layouts(smooth(1))).shape == (1, 768)
    assert np.linalg.norm(layout_vectors(layouts(smooth(1)))) == pytest.approx(1)


def test_styles_are_weighed_by_what_the_training_pictures_have_in_common() -> None:
    styles = np.stack([seen(smooth(i), 64).style for i in range(24)])
    training, base = styles[:12], styles[12:]
    training[:, 0] = 40 + 0.1 * np.arange(12)  # all the same here, and anything there
    space = StyleSpace(training, base)
    one, other, far = np.tile(base[:1], (3, 1))
    one[0], other[0], far[0] = 40, 60, 80
    apart = distances(space.vectors(np.stack([one])), space.vectors(np.stack([other, far])))[0]
    assert apart[1] == pytest.approx(4 * apart[0])  # a difference, squared
    weakened = base[:1].copy()
    weakened[0, 1] += 20 * styles[:, 1].std() / styles[:, 0].std()
    as_far = distances(space.vectors(base[:1]), space.vectors(weakened))[0, 0]
    assert apart[0] > 10 * as_far
    assert 0.5 < variety(space.vectors(training)) < 1.5
    flat = StyleSpace(np.repeat(styles[:1], 3, axis=0), np.repeat(styles[:1], 2, axis=0))
    assert flat.vectors(styles).shape == (24, 0)  # nothing varies


def test_pictures_are_compared_at_a_side_that_all_of_them_have() -> None:
    assert common_side((512, 768), (300, 200)) == 256
    assert common_side((512, 768), (200, 100)) == 128
    assert common_side((32, 32)) == 64
    assert seen(smooth(1), 64).layout.shape == (GRID, GRID, 3)
    assert seen(smooth(1, 300), 64).small.shape == (128, 128, 3)
