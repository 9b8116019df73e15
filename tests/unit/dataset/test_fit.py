"""How pictures are scaled, cut and mirrored: by hand, by properties, and on real pixels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_atelier.training.dataset.buckets import Size, cover, make_buckets, select_bucket
from lora_atelier.training.dataset.fit import (
    BUCKET_RESO_STEPS,
    Crop,
    FitOptions,
    Placement,
    Variant,
    bucket_of,
    fits,
    place,
)
from lora_atelier.training.dataset.pictures import fitted_mask, fitted_pixels
from lora_atelier.training.errors import AtelierError

WHITE = (255, 255, 255)
sides = st.integers(1, 3000)
sizes = st.tuples(sides, sides)


@st.composite
def fit_options(draw, resolutions: int = 1) -> FitOptions:
    steps = draw(st.sampled_from(BUCKET_RESO_STEPS))
    resolution = st.integers(8, 128).map(lambda eighths: eighths * 8)
    return FitOptions(
        tuple(draw(st.lists(resolution, min_size=1, max_size=resolutions, unique=True))),
        enable_bucket=draw(st.booleans()),
        bucket_reso_steps=steps,
        bucket_no_upscale=draw(st.booleans()),
        crop=draw(st.sampled_from(Crop)),
        flip_aug=draw(st.booleans()),
    )


def _noise(width: int, height: int) -> Image.Image:
    """A picture of which no two parts are alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        # 640 / 600 is the larger factor: 640×427 is cut to 384, of the 43 rows 21 above.
        ((600, 400), FitOptions(), Placement((600, 400), (640, 427), (0, 21), (640, 384))),
        # 384 / 1080: 683×384 is cut to 640, of the 43 columns 21 on the left.
        ((1920, 1080), FitOptions(), Placement((1920, 1080), (683, 384), (21, 0), (640, 384))),
        # A square of 512: 768×512, 256 columns are cut away.
        (
            (600, 400),
            FitOptions(enable_bucket=False),
            Placement((600, 400), (768, 512), (128, 0), (512, 512)),
        ),
        (
            (300, 200),
            FitOptions(bucket_no_upscale=True),
            Placement((300, 200), (300, 200), (22, 4), (256, 192)),
        ),
    ],
)
def test_a_centre_crop_lies_where_it_was_worked_out_by_hand(
    size: Size, options: FitOptions, expected: Placement
) -> None:
    assert place(size, options, Variant(0), "a.png") == expected


def test_a_mirrored_crop_starts_at_what_was_its_right_edge() -> None:
    """Of 43 columns 21 are on the left and 22 on the right, which mirroring turns round."""
    assert place((1920, 1080), FitOptions(flip_aug=True), Variant(0, flip=True), "a.png") == (
        Placement((1920, 1080), (683, 384), (22, 0), (640, 384), True)
    )


@given(sizes, fit_options(), st.integers(0, 3), st.booleans())
def test_the_cut_lies_inside_the_scaled_picture(size, options, crop, flip) -> None:
    assume(fits(size, options))
    placement = place(size, options, Variant(0, crop, flip), "a.png")
    for start, length, whole in zip(placement.crop, placement.size, placement.resized, strict=True):
        assert 0 <= start <= start + length <= whole
    assert placement.original == size
    assert placement.size == bucket_of(size, options, options.resolutions[0])
    assert all(side % options.bucket_reso_steps == 0 for side in placement.size) or (
        placement.size == options.resolutions * 2 and not options.enable_bucket
    )


@given(sizes, fit_options())
def test_half_of_what_is_cut_away_lies_before_a_centre_crop(size, options) -> None:
    assume(fits(size, options) and options.crop is Crop.CENTER)
    placement = place(size, options, Variant(0), "a.png")
    for start, length, whole in zip(placement.crop, placement.size, placement.resized, strict=True):
        assert start == (whole - length) // 2


@given(sizes, fit_options(resolutions=3), st.data())
def test_each_resolution_is_fitted_as_if_it_were_the_only_one(size, options, data) -> None:
    index = data.draw(st.integers(0, len(options.resolutions) - 1))
    alone = FitOptions(
        options.resolutions[index : index + 1],
        enable_bucket=options.enable_bucket,
        bucket_reso_steps=options.bucket_reso_steps,
        bucket_no_upscale=options.bucket_no_upscale,
        crop=options.crop,
    )
    assert place(size, options, Variant(index, 1), "a") == place(size, alone, Variant(0, 1), "a")


def test_several_resolutions_give_a_bucket_each() -> None:
    """2 : 3 is nearest to 0.6, 0.714 and 0.684."""
    options = FitOptions((512, 768, 1024))
    buckets = [bucket_of((1000, 1500), options, resolution) for resolution in options.resolutions]
    assert buckets == [(384, 640), (640, 896), (832, 1216)]


@given(sizes, st.integers(8, 128))
def test_without_buckets_every_picture_is_cut_to_a_square(size, eighths) -> None:
    side = eighths * 8
    options = FitOptions((side,), enable_bucket=False)
    placement = place(size, options, Variant(0), "a.png")
    assert (placement.size, placement.resized) == ((side, side), cover(size, (side, side)))


def test_the_buckets_lie_within_the_chosen_limits() -> None:
    options = FitOptions(min_bucket_reso=384, max_bucket_reso=640)
    assert bucket_of((1000, 100), options, 512) == (640, 384)
    assert bucket_of((1000, 100), FitOptions(), 512) == (1024, 256)


@pytest.mark.parametrize(
    ("resolution", "steps", "limits"),
    [(512, 64, (256, 1024)), (768, 64, (384, 1536)), (520, 64, (256, 1024)), (64, 64, (64, 128))],
)
def test_a_side_is_half_to_twice_the_resolution_when_nothing_is_said(
    resolution: int, steps: int, limits: tuple[int, int]
) -> None:
    options = FitOptions((resolution,), bucket_reso_steps=steps)
    assert options.bucket_limits(resolution) == limits
    expected = select_bucket((700, 900), make_buckets(resolution, *limits, steps)).bucket
    assert bucket_of((700, 900), options, resolution) == expected


def test_a_picture_too_narrow_for_a_step_does_not_fit_unless_it_may_grow() -> None:
    assert not fits((600, 40), FitOptions(bucket_no_upscale=True))
    assert not fits((40, 600), FitOptions(bucket_no_upscale=True))
    assert fits((600, 64), FitOptions(bucket_no_upscale=True))
    assert fits((600, 40), FitOptions(bucket_no_upscale=True, bucket_reso_steps=8))
    assert fits((600, 40), FitOptions())


def test_a_picture_must_fit_at_every_resolution() -> None:
    """2000×128 holds 2 steps at 1024, and is 45 px high when scaled down to 180² px."""
    assert fits((2000, 128), FitOptions((1024,), bucket_no_upscale=True))
    assert not fits((2000, 128), FitOptions((1024, 184), bucket_no_upscale=True))


RANDOM = FitOptions(crop=Crop.RANDOM, crop_variants=64)


def test_a_random_crop_depends_on_the_name_and_the_number_alone() -> None:
    size = (1920, 1080)
    first = place(size, RANDOM, Variant(0, 5), "a.png")
    place(size, RANDOM, Variant(0, 6), "b.png")
    torch.manual_seed(7)
    assert place(size, RANDOM, Variant(0, 5), "a.png") == first
    others = [place(size, RANDOM, Variant(0, 5), f"{i}.png").crop for i in range(20)]
    assert len(set(others)) > 10


def test_the_first_crops_stay_when_more_are_asked_for() -> None:
    few, size = FitOptions(crop=Crop.RANDOM, crop_variants=2), (1920, 1080)
    assert [few.crops, RANDOM.crops, FitOptions(crop_variants=9).crops] == [2, 64, 1]
    for crop in range(2):
        variant = Variant(0, crop)
        assert place(size, few, variant, "a") == place(size, RANDOM, variant, "a")


def test_random_crops_are_spread_evenly_over_the_room() -> None:
    """683 columns for 640: each of the 44 places is expected 100 times, deviation 9.9."""
    crops = Counter(
        place((1920, 1080), RANDOM, Variant(0, crop), f"{name}.png").crop
        for name in range(110)
        for crop in range(40)
    )
    assert set(crops) == {(left, 0) for left in range(44)}
    assert all(abs(count - 100) < 50 for count in crops.values())


def test_a_square_cut_is_drawn_along_the_longer_side_only() -> None:
    squares = FitOptions((64,), enable_bucket=False, crop=Crop.RANDOM)
    crops = {place((100, 300), squares, Variant(0, c), "a").crop for c in range(64)}
    assert {left for left, _ in crops} == {0}
    assert len({top for _, top in crops}) > 30


@pytest.mark.parametrize("crop", list(Crop))
@pytest.mark.parametrize("size", [(301, 200), (200, 301), (90, 700), (128, 128)])
def test_mirrored_pixels_are_the_mirror_image_of_the_same_part(size: Size, crop: Crop) -> None:
    options = FitOptions((128,), crop=crop, flip_aug=True)
    image = _noise(*size)
    for number in range(options.crops):
        plain, flipped = (
            fitted_pixels(image, place(size, options, Variant(0, number, flip), "a.png"), WHITE)
            for flip in (False, True)
        )
        assert torch.equal(flipped, plain.flip(1))
        assert not torch.equal(flipped, plain)


@given(sizes.map(lambda s: (s[0] % 400 + 1, s[1] % 400 + 1)), fit_options(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_pixels_are_those_of_the_placement(size: Size, options: FitOptions, flip: bool) -> None:
    assume(fits(size, options) and max(size) < 12 * min(size))
    image = _noise(*size)
    placement = place(size, options, Variant(0, 0, flip), "a.png")
    scaled = np.asarray(image.resize(placement.resized, Image.Resampling.LANCZOS))
    scaled = scaled[:, ::-1] if flip else scaled
    (left, top), (width, height) = placement.crop, placement.size
    expected = scaled[top : top + height, left : left + width] / np.float32(255)
    assert expected.shape == (height, width, 3)
    assert np.array_equal(fitted_pixels(image, placement, WHITE).numpy(), expected)


def test_a_mask_is_cut_where_its_picture_is() -> None:
    options = FitOptions((64,), crop=Crop.RANDOM, flip_aug=True)
    grey = _noise(300, 200).convert("L")
    for crop in range(options.crops):
        placement = place((300, 200), options, Variant(0, crop, True), "a.png")
        pixels = fitted_pixels(grey.convert("RGB"), placement, WHITE)
        assert torch.equal(fitted_mask(grey, placement), pixels[..., 0])


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"resolutions": ()}, "resolution is empty: 512 for SD1.5"),
        ({"resolutions": (512, 512)}, r"resolution holds the same value twice: \(512, 512\)"),
        ({"resolutions": (0,)}, "resolution is 0: it must be a number from 64 to 4096. 512 for"),
        ({"resolutions": (4104,)}, "resolution is 4104: it must be a number from 64 to 4096"),
        ({"resolutions": (512, 500)}, "resolution is 500: the VAE needs a multiple of 8; 496 is"),
        ({"bucket_reso_steps": 48}, r"bucket_reso_steps is 48: .* one of \(8, 16, 32, 64\)"),
        ({"crop_variants": 0}, "crop_variants is 0: it must be a number from 1 to 64. 4 is usual"),
        ({"crop_variants": 65}, "crop_variants is 65"),
        ({"min_bucket_reso": 100}, r"min_bucket_reso is 100: .* multiple of .*steps \(64\)"),
        ({"max_bucket_reso": 1000}, r"max_bucket_reso is 1000: .* multiple of .*steps \(64\)"),
        ({"max_bucket_reso": 17_024}, "max_bucket_reso is 17024: it must be a number from 8"),
        ({"min_bucket_reso": 576}, r"resolution is 512: .* between min_bucket_reso \(576\) and"),
        ({"max_bucket_reso": 448}, r"and max_bucket_reso \(448\)"),
        ({"min_bucket_reso": -64}, "min_bucket_reso is -64"),
        (
            {"resolutions": (512, 1280), "max_bucket_reso": 1024},
            r"resolution is 1280: .* max_bucket_reso \(1024\)",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_widget_and_the_value(choices: dict, words: str) -> None:
    with pytest.raises(AtelierError, match=f"^(resolution.*)?{words}"):
        FitOptions(**choices)


@pytest.mark.parametrize("ignored", [{"enable_bucket": False}, {"bucket_no_upscale": True}])
def test_limits_that_play_no_part_are_not_judged(ignored: dict) -> None:
    FitOptions((512,), min_bucket_reso=100, max_bucket_reso=1, **ignored)
