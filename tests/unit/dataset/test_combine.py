"""Several datasets as one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.combine import LONGEST_NAME, combine
from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Mask, Problem, Role, Sample
from lora_atelier.training.errors import AtelierError


def _dataset(name: str, *names: str, **fields) -> ImageDataset:
    samples = [
        Sample(ImageFile(f"/{name}/{n}", (8, 8)), n, (f"{n} of {name}",), **fields) for n in names
    ]
    return ImageDataset(tuple(samples), name)


def test_every_sample_keeps_all_that_was_said_of_it() -> None:
    special = _dataset(
        "a",
        "x.png",
        num_repeats=7,
        role=Role.REGULARISATION,
        loss_weight=0.25,
        mask=Mask.ALPHA,
        source="museum",
        license="CC0",
        fit=FitOptions((768, 1024), flip_aug=True),
        caption_options=CaptionOptions(shuffle_caption=True),
        may_be_skipped=True,
    )
    plain = _dataset("b", "y.png")
    assert combine([special, plain]).samples == special.samples + plain.samples


def test_a_name_that_is_taken_gets_the_name_of_its_dataset_before_it() -> None:
    datasets = [_dataset("a", "x.png", "y.png"), *[_dataset("b", "x.png", "z.png")] * 3]
    assert [(s.name, s.caption) for s in combine(datasets).samples] == [
        ("x.png", "x.png of a"),
        ("y.png", "y.png of a"),
        ("b/x.png", "x.png of b"),
        ("z.png", "z.png of b"),
        ("b_2/x.png", "x.png of b"),
        ("b/z.png", "z.png of b"),
        ("b_3/x.png", "x.png of b"),
        ("b_2/z.png", "z.png of b"),
    ]


def test_a_prefix_may_itself_be_taken() -> None:
    combined = combine([_dataset("a", "x.png"), _dataset("b", "x.png", "b/x.png")])
    assert [s.name for s in combined.samples] == ["x.png", "b/x.png", "b/b/x.png"]


def test_problems_of_all_datasets_are_kept() -> None:
    first, second = _dataset("a", "x.png"), _dataset("b", "y.png")
    first = replace(first, problems=(Problem("p", "broken"),))
    second = replace(second, problems=(Problem("q", "empty"), Problem("r", "cut")))
    assert [p.name for p in combine([first, second]).problems] == ["p", "q", "r"]


@pytest.mark.parametrize(
    ("given", "expected"), [("", "fox+bear"), ("  ", "fox+bear"), (" zoo ", "zoo")]
)
def test_the_name_is_the_given_one_or_the_old_ones_joined(given: str, expected: str) -> None:
    datasets = [_dataset("fox", "a"), _dataset("bear", "b"), _dataset("fox", "c")]
    assert combine(datasets, given).name == expected


def test_a_joined_name_stays_short_enough_for_a_file_name() -> None:
    datasets = [_dataset("long name " * 4 + str(i), f"{i}.png") for i in range(6)]
    name = combine(datasets).name
    assert len(name) == LONGEST_NAME and name.endswith("…") and name.startswith("long name ")


def test_no_dataset_at_all_is_told() -> None:
    with pytest.raises(AtelierError, match="no dataset is connected"):
        combine([])
