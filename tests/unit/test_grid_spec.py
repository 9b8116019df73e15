"""What a grid compares, and where each picture stands."""

from __future__ import annotations

import pytest

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.results.grid_spec import (
    GridLayout,
    GridSpec,
    Variant,
    lora_labels,
    parse_strengths,
    require_picture_size,
)
from lora_atelier.training.results.preview_spec import PreviewSpec

PREVIEW = PreviewSpec(("a fox", "a cat", "a cup"), seeds=(7, 8))
DOWN = GridLayout.STRENGTHS_DOWN


def grid(**changes: object) -> GridSpec:
    return GridSpec(**{"preview": PREVIEW, "loras": ("a", "b"), "strengths": (0.5, 1.0), **changes})


@pytest.mark.parametrize("text", ["0.5, 1, -2e0", "0.5 1\n-2", "0.5，1；-2", " 0.50;1.0、1,-2.0 "])
def test_strengths_are_a_list_of_numbers_each_once(text: str) -> None:
    assert parse_strengths(text) == (0.5, 1.0, -2.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "strengths is empty"),
        ("0.5, strong", 'strengths: "strong" is no number'),
        ("nan", 'strengths: "nan" is no number'),
        ("inf", 'strengths: "inf" is no number'),
        ("0,5", '"0.5", not "0,5"'),
        ("1, 0", "strengths: 0 is the base"),
        ("101", "strengths is 101.0: it must be a number from -100 to 100"),
    ],
)
def test_what_is_no_list_of_strengths_is_refused(text: str, told: str) -> None:
    with pytest.raises(AtelierError, match=told):
        parse_strengths(text)


def test_the_base_is_drawn_first_and_once_for_each_prompt_and_seed() -> None:
    spec = grid()
    assert spec.variants == [None, (0, 0), (0, 1), (1, 0), (1, 1)]
    assert spec.pictures == 3 * 2 * (1 + 2 * 2)


def test_strengths_stand_side_by_side_in_a_row_for_each_seed() -> None:
    spec = grid()
    assert spec.shape == (2, 5)
    assert spec.places(None, 1) == [(1, 0)]
    assert spec.places(Variant(0, 1), 0) == [(0, 2)]
    assert spec.places(Variant(1, 0), 1) == [(1, 3)]


def test_or_one_below_the_other_with_the_base_at_the_head_of_each_row() -> None:
    spec = grid(layout=DOWN)
    assert spec.shape == (4, 3)
    assert spec.places(None, 1) == [(2, 0), (3, 0)]
    assert spec.places(Variant(0, 1), 0) == [(1, 1)]
    assert spec.places(Variant(1, 0), 1) == [(2, 2)]


@pytest.mark.parametrize("layout", GridLayout)
@pytest.mark.parametrize("strengths", [(1.0,), (0.3, 0.6, 1.0)])
def test_every_place_is_taken_exactly_once(
    layout: GridLayout, strengths: tuple[float, ...]
) -> None:
    spec = grid(layout=layout, strengths=strengths)
    taken = [p for v in spec.variants for seed in range(2) for p in spec.places(v, seed)]
    rows, columns = spec.shape
    assert sorted(taken) == [(row, column) for row in range(rows) for column in range(columns)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loras": ()}, "There is no LoRA to compare"),
        ({"strengths": ()}, "strengths is empty"),
        ({"strengths": (float("nan"),)}, "strengths is nan"),
        ({"picture_size": 32}, "picture_size is 32"),
        ({"label_size": 0.1}, "label_size is 0.1"),
        ({"loras": tuple(map(str, range(34)))}, r"414 pictures: 3 prompts × 2 seeds × \(the base"),
    ],
)
def test_what_makes_no_grid_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(AtelierError, match=told):
        grid(**changes)


def test_the_largest_grid_is_possible() -> None:
    preview = PreviewSpec(("a fox", "a cat"), seeds=(1, 2))
    assert GridSpec(preview, tuple(map(str, range(99)))).pictures == 400


def test_a_picture_size_is_nought_or_large_enough() -> None:
    for size in (0, 64, 4096):
        require_picture_size(size)
    for size in (-1, 1, 63, 4097):
        with pytest.raises(AtelierError, match=f"picture_size is {size}"):
            require_picture_size(size)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("styles/foxes.safetensors", "cats.pt"), ("foxes", "cats")),
        (("v1/fox.safetensors", "v2/fox.safetensors"), ("v1/fox", "v2/fox")),
        (
            ("a/lora/fox-1a-step00000200.safetensors", "a/lora/fox-1a-step00001000.safetensors"),
            ("step 200", "step 1000"),
        ),
        (("fox-step00000000",), ("step 0",)),
        (("fox-step00000200", "cat-step00000200"), ("fox-step00000200", "cat-step00000200")),
        (("fox-step00000200", "trained LoRA"), ("fox-step00000200", "trained LoRA")),
        (("model.v1.5.safetensors",), ("model.v1.5",)),
        (("same", "same"), ("same", "same")),
    ],
)
def test_labels_are_as_short_as_they_can_be_told_apart(
    names: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    assert lora_labels(names) == labels
