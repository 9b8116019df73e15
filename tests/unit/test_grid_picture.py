"""The sheets of a grid: every picture in its place, and labels that can be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.results import grid_layout
from lora_atelier.training.results.grid_layout import SheetLayout, sheet_layout
from lora_atelier.training.results.grid_picture import PAPER, GridPicture
from lora_atelier.training.results.grid_spec import GridLayout, GridSpec, Variant
from lora_atelier.training.results.preview_spec import PreviewSpec

PREVIEW = PreviewSpec(("ein Fuchs, 狐狸, $x$", "a cat"), seeds=(1, 7), width=128, height=64)
SPEC = GridSpec(PREVIEW, ("foxes", "a_very_long_name_of_a_style-v2"), (0.5, 1.0), picture_size=0)
LAYOUTS = list(GridLayout)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph missing from font(s)"
        yield


def colour(variant: Variant | None, prompt: int, seed: int) -> tuple[int, int, int]:
    number = 0 if variant is None else 1 + variant.lora * 2 + variant.strength
    return (200, 20 + 20 * number, 30 + 90 * prompt + 45 * seed)


def drawn(spec: GridSpec) -> tuple[SheetLayout, np.ndarray]:
    """Layout, and [prompts, H, W, 3] of sheets with plain pictures."""
    picture = GridPicture(spec)
    size = (spec.preview.width, spec.preview.height)
    for variant in spec.variants:
        for prompt in range(len(spec.preview.prompts)):
            for seed in range(len(spec.preview.seeds)):
                plain = Image.new("RGB", size, colour(variant, prompt, seed))
                picture.put(variant, prompt, seed, plain)
    images = picture.images()
    assert images.dtype == torch.float32 and 0 <= images.min() and images.max() <= 1
    return picture.layout, np.uint8(images.numpy() * 255.0)


def cut(sheet: np.ndarray, layout: SheetLayout, row: int, column: int) -> np.ndarray:
    (left, top), (width, height) = layout.corner(row, column), layout.cell
    return sheet[top : top + height, left : left + width]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_picture_is_in_its_place_pixel_for_pixel(layout: GridLayout) -> None:
    spec = replace(SPEC, layout=layout)
    where, sheets = drawn(spec)
    assert where.cell == (128, 64)
    assert sheets.shape == (2, *reversed(where.size), 3)
    for variant in spec.variants:
        for prompt, sheet in enumerate(sheets):
            for seed in (0, 1):
                for place in spec.places(variant, seed):
                    assert (cut(sheet, where, *place) == colour(variant, prompt, seed)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("label_size", [0.5, 1.0, 2.0])
def test_labels_lie_outside_of_pictures_and_inside_of_the_sheet(
    layout: GridLayout, label_size: float
) -> None:
    where, sheets = drawn(replace(SPEC, layout=layout, label_size=label_size))
    rows, columns = where.spec.shape
    for sheet in sheets:
        edges = (sheet[:2], sheet[-2:], sheet[:, :2], sheet[:, -2:])
        assert all((edge == PAPER).all() for edge in edges)  # no letter is cut off
        rest = sheet.copy()
        for row in range(rows):
            left, top = where.corner(row, 0)
            label = sheet[top : top + where.cell[1], : where.left - 2]
            assert label.min() < 150  # of the row
            for column in range(columns):
                cut(rest, where, row, column)[:] = PAPER
        assert (rest[where.top :, where.left :] == PAPER).all()
        for lora in (None, 0, 1):
            left, width = where.room(lora)
            above = sheet[where.names_top : where.top, left : left + width]
            assert above.min() < 100, lora
            assert (
                sheet[where.names_top : where.top, left + width : left + width + 2] == PAPER
            ).all()


def test_the_prompt_stands_above_and_differs_from_sheet_to_sheet() -> None:
    where, (one, other) = drawn(SPEC)
    assert one[: where.names_top].min() < 50
    assert not np.array_equal(one[: where.names_top], other[: where.names_top])
    assert np.array_equal(one[where.names_top : where.top], other[where.names_top : where.top])


def test_a_long_prompt_makes_all_sheets_taller() -> None:
    long = replace(PREVIEW, prompts=("word " * 60, "a cat"))
    plain, tall = sheet_layout(SPEC), sheet_layout(replace(SPEC, preview=long))
    assert tall.top > plain.top + plain.font
    assert drawn(replace(SPEC, preview=long))[1].shape[1] == tall.size[1]


@pytest.mark.parametrize(("size", "cell"), [(64, (64, 32)), (256, (256, 128)), (0, (128, 64))])
def test_pictures_have_the_size_that_is_asked_for(size: int, cell: tuple[int, int]) -> None:
    where, sheets = drawn(replace(SPEC, picture_size=size))
    assert where.cell == cell
    assert (cut(sheets[1], where, 1, 0) == colour(None, 1, 1)).all()


def test_labels_grow_with_the_sheet_and_with_label_size() -> None:
    few = replace(SPEC, picture_size=256)
    many = replace(few, loras=tuple(map(str, range(12))))
    assert sheet_layout(many).font > 1.3 * sheet_layout(few).font
    double = replace(few, label_size=2.0)
    assert sheet_layout(double).font == pytest.approx(2 * sheet_layout(few).font)


def test_pictures_are_smaller_when_the_sheet_would_be_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grid_layout, "MOST_SIDE", 500)
    smaller = sheet_layout(SPEC)
    assert max(smaller.size) <= 500 and 48 <= smaller.longer < 128
    monkeypatch.setattr(grid_layout, "MOST_SIDE", 8192)
    monkeypatch.setattr(grid_layout, "MOST_PIXELS", 200_000)
    smaller = sheet_layout(SPEC)
    width, height = smaller.size
    assert 2 * width * height <= 200_000 < 2 * width * height * 1.3


def test_so_many_that_nothing_would_be_seen_are_refused() -> None:
    preview = PreviewSpec(("a",), width=64, height=64)
    with pytest.raises(AtelierError, match=r"1 × 399 pictures for each of 1 prompts do not fit"):
        GridPicture(GridSpec(preview, tuple(map(str, range(398)))))
    down = GridSpec(preview, ("a",), tuple(i / 100 for i in range(1, 101)))
    assert sheet_layout(replace(down, layout=GridLayout.STRENGTHS_DOWN)).longer < 384


@pytest.mark.parametrize("name", ["W" * 40, "狐" * 40, "a_style-" * 20])
def test_a_long_name_stays_above_its_own_columns(name: str) -> None:
    where, (sheet, _) = drawn(replace(SPEC, loras=(name, name + "2")))
    above = sheet[where.names_top : where.top]
    for lora in (0, 1):
        left, width = where.room(lora)
        assert above[:, left : left + width].min() < 100
        assert (above[:, left - where.gap * 2 : left - 1] == PAPER).all()
        assert (above[:, left + width + 1 : left + width + where.gap * 2] == PAPER).all()
