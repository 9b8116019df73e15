"""Previews on disk, and the sheet that shows all of them."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_atelier.training.results.contact_sheet import ContactSheet, shown_steps
from lora_atelier.training.results.preview_files import (
    BASE,
    PreviewFile,
    save_preview,
    saved_previews,
)
from lora_atelier.training.results.preview_spec import PreviewSpec

SPEC = PreviewSpec(("ein Fuchs, 狐狸, $x$", "a cat"), seeds=(1, 7), width=128, height=64)
COLOURS = {1: (250, 20, 20), 7: (20, 20, 250)}
WHITE = 255


def put(folder: Path, step: int, spec: PreviewSpec = SPEC) -> list[PreviewFile]:
    """A row of pictures, one colour for each seed."""
    files = [PreviewFile(step, prompt, seed) for prompt, seed in spec.columns]
    for file in files:
        colour = torch.tensor(COLOURS[file.seed]) / 255
        save_preview(folder, file, spec, colour.expand(1, spec.height, spec.width, 3))
    return files


def drawn(sheet: ContactSheet, folder: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph missing from font(s)"
        content = sheet.draw(list(saved_previews(folder, sheet.spec)))
    return np.asarray(Image.open(io.BytesIO(content)))


def blocks(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int]:
    """How many pictures of a colour lie one below the other, and side by side."""
    hit = np.abs(pixels.astype(int) - colour).max(axis=2) < 3
    rows, columns = hit.any(axis=1), hit.any(axis=0)
    return (
        int((np.diff(rows.astype(int)) == 1).sum()),
        int((np.diff(columns.astype(int)) == 1).sum()),
    )


def test_a_picture_is_saved_under_a_plain_name_with_what_it_shows(tmp_path: Path) -> None:
    image = torch.tensor([0.0, 0.5, 1.2]).expand(1, 64, 128, 3)
    path = save_preview(tmp_path, PreviewFile(200, 0, 7), SPEC, image)
    assert path == tmp_path / "previews" / "step000200-p0-s7.png"
    with Image.open(path) as picture:
        assert picture.size == (128, 64)
        assert picture.getpixel((3, 3)) == (0, 127, 255)
        assert '"prompt": "ein Fuchs, 狐狸, $x$"' in picture.info["atelier_preview"]
        assert '"seed": 7' in picture.info["atelier_preview"]
        assert '"step": 200' in picture.info["atelier_preview"]
    assert save_preview(tmp_path, PreviewFile(BASE, 1, 1), SPEC, image).name == "base-p1-s1.png"


def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    files = {*put(tmp_path, BASE), *put(tmp_path, 5), *put(tmp_path, 1_000_000)}
    assert {file for file, _ in saved_previews(tmp_path, SPEC)} == files
    assert all(path.name == file.name for file, path in saved_previews(tmp_path, SPEC))
    assert list(saved_previews(tmp_path / "nothing", SPEC)) == []


@pytest.mark.parametrize(
    "change",
    [{"prompts": ("a dog", "a cow")}, {"cfg": 3.0}, {"negative": "blurred"}, {"steps": 9}],
)
def test_pictures_of_other_prompts_or_settings_are_left_out(
    tmp_path: Path, change: dict[str, object]
) -> None:
    put(tmp_path, 5)
    files = put(tmp_path, 10, replace(SPEC, **change))
    assert [file.step for file, _ in saved_previews(tmp_path, SPEC)] == [5] * 4
    assert {file for file, _ in saved_previews(tmp_path, replace(SPEC, **change))} == set(files)


def test_files_of_other_kinds_do_no_harm(tmp_path: Path) -> None:
    put(tmp_path, 5)
    previews = tmp_path / "previews"
    (previews / "step000006-p0-s1.png").write_bytes(b"cut short")
    (previews / "holiday.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (8, 8)).save(previews / "step000007-p0-s1.png")
    (previews / "step000005-p0-s7.png").rename(previews / "step000009-p0-s7.png")  # not of step 9
    assert sorted(file.name for file, _ in saved_previews(tmp_path, SPEC)) == [
        "step000005-p0-s1.png",
        "step000005-p1-s1.png",
        "step000005-p1-s7.png",
    ]


def test_the_sheet_has_a_row_a_step_and_a_column_a_prompt_and_seed(tmp_path: Path) -> None:
    sheet = ContactSheet(SPEC)
    put(tmp_path, BASE)
    assert blocks(drawn(sheet, tmp_path), COLOURS[7]) == (1, 2)
    put(tmp_path, 200)
    put(tmp_path, 50)
    pixels = drawn(sheet, tmp_path)
    assert blocks(pixels, COLOURS[1]) == blocks(pixels, COLOURS[7]) == (3, 2)
    assert np.array_equal(pixels, drawn(ContactSheet(SPEC), tmp_path))  # whatever was kept


def test_rows_are_in_the_order_of_steps_with_the_base_above(tmp_path: Path) -> None:
    spec = replace(SPEC, prompts=("a",), seeds=(1,))
    colours = {1000: (1.0, 0.0, 0.0), BASE: (0.0, 1.0, 0.0), 0: (0.0, 0.0, 1.0), 9: (0.0, 0.0, 0.0)}
    for step, colour in colours.items():
        image = torch.tensor(colour).expand(1, 64, 128, 3)
        save_preview(tmp_path, PreviewFile(step, 0, 1), spec, image)
    pixels = drawn(ContactSheet(spec), tmp_path)
    rows = [tuple(pixels[92 + 64 + i * 136, 112 + 128] / 255) for i in range(4)]
    assert rows == [colours[step] for step in (BASE, 0, 9, 1000)]


def test_rows_and_columns_have_labels(tmp_path: Path) -> None:
    """Something dark stands left of each row and above each picture, and nowhere else."""
    put(tmp_path, BASE)
    put(tmp_path, 50)
    dark = drawn(ContactSheet(SPEC), tmp_path).max(axis=2) < 200
    assert [bool(dark[92 + i * 136 : 220 + i * 136, :104].any()) for i in (0, 1)] == [True, True]
    lefts = [112, 112 + 264, 112 + 2 * 264 + 16, 112 + 3 * 264 + 16]
    assert all(dark[70:90, left : left + 120].any() for left in lefts)  # seeds
    assert dark[:66, lefts[0] : lefts[0] + 264].any() and dark[:66, lefts[2] :].any()  # prompts
    assert not dark[:, :112][:92].any()


def test_a_picture_that_is_missing_leaves_its_place_empty(tmp_path: Path) -> None:
    put(tmp_path, BASE)
    put(tmp_path, 50)
    (tmp_path / "previews" / "step000050-p0-s1.png").unlink()
    pixels = drawn(ContactSheet(SPEC), tmp_path)
    second = pixels[92 + 136 + 4 : 92 + 136 + 120]
    assert (second[:, 120:360] == WHITE).all()
    assert blocks(second, COLOURS[1])[1] == 1


def test_a_picture_that_was_drawn_anew_is_shown_anew(tmp_path: Path) -> None:
    sheet = ContactSheet(SPEC)
    put(tmp_path, 5)
    drawn(sheet, tmp_path)
    green = torch.tensor([0.0, 1.0, 0.0]).expand(1, 64, 128, 3)
    save_preview(tmp_path, PreviewFile(5, 0, 1), SPEC, green)
    assert blocks(drawn(sheet, tmp_path), (0, 255, 0)) == (1, 1)


@pytest.mark.parametrize(("steps", "most"), [(3, 3), (100, 7), (1000, 30)])
def test_of_too_many_rows_the_first_and_the_last_are_shown(steps: int, most: int) -> None:
    shown = shown_steps(range(steps), most)
    assert len(set(shown)) == most
    assert (shown[0], shown[-1]) == (0, steps - 1)
    gaps = np.diff(shown)
    assert gaps.max() - gaps.min() <= 1


def test_a_long_run_still_gives_a_sheet_of_a_sane_size(tmp_path: Path) -> None:
    spec = PreviewSpec(("a",), seeds=(1,), width=64, height=64)
    for step in (BASE, *range(1, 40)):
        put(tmp_path, step, spec)
    pixels = drawn(ContactSheet(spec), tmp_path)
    assert pixels.shape[0] <= 8192
    assert blocks(pixels, COLOURS[1]) == ((8192 - 92) // 264, 1)


def test_many_columns_make_the_pictures_smaller(tmp_path: Path) -> None:
    spec = PreviewSpec(tuple("abcdefghijkl"), seeds=(1, 7), width=64, height=64)
    put(tmp_path, 5, spec)
    pixels = drawn(ContactSheet(spec), tmp_path)
    assert pixels.shape[1] <= 4096
    assert blocks(pixels, COLOURS[1]) == (1, 12)
