"""Fit options as people write them, put on a whole dataset."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.refit import (
    bucket_counts,
    bucket_summary,
    fit_dataset,
    fit_options,
)
from lora_atelier.training.dataset.samples import ImageDataset, Problem, Sample
from lora_atelier.training.errors import AtelierError

NO_UPSCALE = FitOptions((512,), bucket_no_upscale=True)


def _dataset(*sizes: tuple[int, int], **fields) -> ImageDataset:
    return ImageDataset(
        tuple(
            Sample(ImageFile(f"{i}.png", size), f"{i}.png", ("a",), **fields)
            for i, size in enumerate(sizes)
        )
    )


def _options(
    resolution: str = "512", steps: str = "64", background: str = "white", **others
) -> FitOptions:
    return fit_options(resolution, steps, background, **others)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", (512,)),
        (" 512, 768 ", (512, 768)),
        ("768;512", (768, 512)),
        ("512 1024,", (512, 1024)),
    ],
)
def test_resolutions_are_numbers_with_commas(text: str, expected: tuple[int, ...]) -> None:
    assert _options(text).resolutions == expected


@pytest.mark.parametrize("text", ["512x768", "large", "512, big", "-512", "512.5", "1" * 400, "²"])
def test_what_is_no_resolution_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(AtelierError, match=r"^resolution is .*512, 768") as refusal:
        _options(text)
    assert text in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "is empty"), (" , ", "is empty"), ("512, 512", "twice"), ("100", "multiple")],
)
def test_resolutions_are_judged_as_everywhere(text: str, reason: str) -> None:
    with pytest.raises(AtelierError, match=f"^resolution.*{reason}"):
        _options(text)


@pytest.mark.parametrize("steps", ["48", "0", "many", ""])
def test_steps_that_are_no_choice_are_refused(steps: str) -> None:
    with pytest.raises(AtelierError, match=f"^bucket_reso_steps is {steps}: it must be one of"):
        _options(steps=steps)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("white", (255, 255, 255)),
        (" #808080 ", (128, 128, 128)),
        ("#f00", (255, 0, 0)),
        ("rgb(1, 2, 3)", (1, 2, 3)),
        ("#01020380", (1, 2, 3)),
    ],
)
def test_a_background_is_a_colour_by_name_or_number(text: str, expected: tuple) -> None:
    assert _options(background=text).background == expected


@pytest.mark.parametrize("text", ["", "whiteish", "#12", "255"])
def test_what_is_no_colour_is_refused(text: str) -> None:
    with pytest.raises(AtelierError, match=f'^background is "{text}": write a colour'):
        _options(background=text)


def test_every_sample_gets_the_options_and_keeps_the_rest() -> None:
    dataset = _dataset((600, 400), (512, 512), num_repeats=3, source="museum")
    options = _options("512, 768", crop_variants=2, flip_aug=True)
    fitted = fit_dataset(dataset, options)
    assert [s.fit for s in fitted.samples] == [options] * 2
    assert tuple(replace(s, fit=FitOptions()) for s in fitted.samples) == dataset.samples
    assert [s.fit for s in dataset.samples] == [FitOptions()] * 2  # the wire's value is as it was


def test_a_picture_without_room_is_left_out_and_named() -> None:
    dataset = _dataset((512, 512), (600, 40), may_be_skipped=True)
    earlier = Problem("old.png", "broken")
    fitted = fit_dataset(replace(dataset, problems=(earlier,)), NO_UPSCALE)
    assert [s.name for s in fitted.samples] == ["0.png"]
    first, second = fitted.problems
    assert (first, second.name) == (earlier, "1.png")
    assert "1.png" in second.reason and "600×40 px" in second.reason
    assert "bucket_reso_steps 64" in second.reason and "bucket_no_upscale off" in second.reason


def test_a_picture_without_room_that_may_not_be_skipped_ends_the_work() -> None:
    with pytest.raises(AtelierError, match=r'"1.png" \(600×40 px\) is too small or too narrow'):
        fit_dataset(_dataset((512, 512), (600, 40)), NO_UPSCALE)


def test_when_no_picture_has_room_the_reason_is_told() -> None:
    with pytest.raises(AtelierError, match=r'^None of the pictures fits. "0.png" \(600×40 px\)'):
        fit_dataset(_dataset((600, 40), may_be_skipped=True), NO_UPSCALE)


def test_buckets_are_counted_at_every_resolution() -> None:
    dataset = fit_dataset(_dataset((512, 512), (800, 800), (1024, 512)), _options("512, 768"))
    assert bucket_counts(dataset) == {
        (512, 512): 2,
        (704, 320): 1,
        (768, 768): 2,
        (1088, 512): 1,
    }


def test_the_summary_names_the_fullest_buckets_first() -> None:
    sizes = [(512, 512)] * 3 + [(448, 576)] * 2 + [(576, 448)]
    dataset = fit_dataset(_dataset(*sizes), _options())
    assert bucket_summary(dataset) == "3 buckets: 512×512: 3, 448×576: 2, 576×448: 1"
    assert bucket_summary(dataset, most=1) == "3 buckets: 512×512: 3 and 2 more"
    assert bucket_summary(_dataset((512, 512))) == "1 bucket: 512×512: 1"
