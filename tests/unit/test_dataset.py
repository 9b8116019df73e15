"""A folder of pictures and captions as a dataset."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import pytest
from PIL import Image

from lora_atelier.training.dataset import (
    ImageDataset,
    Sample,
    folder_fingerprint,
    load_folder,
    read_caption,
)
from lora_atelier.training.errors import AtelierError


def _picture(path: Path, caption: str | None = "a fox") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def _captions(folder: Path, **options) -> list[str]:
    return [sample.caption for sample in load_folder(folder, **options).samples]


def _names(folder: Path, **options) -> list[str]:
    samples = load_folder(folder, **options).samples
    return [sample.path.relative_to(folder).as_posix() for sample in samples]


@pytest.mark.parametrize("extension", [".txt", ".caption"])
def test_a_caption_lies_beside_its_picture(tmp_path: Path, extension: str) -> None:
    path = _picture(tmp_path / "a.png", None)
    path.with_suffix(extension).write_text("ein Füchslein, 狐狸", encoding="utf-8")
    assert _captions(tmp_path) == ["ein Füchslein, 狐狸"]


def test_every_picture_has_its_own_caption(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        _picture(tmp_path / f"{name}.png", f"letter {name}")
    dataset = load_folder(tmp_path)
    assert [(s.path.stem, s.caption) for s in dataset.samples] == [
        ("a", "letter a"),
        ("b", "letter b"),
        ("c", "letter c"),
    ]


def test_a_byte_order_mark_is_no_part_of_the_caption(tmp_path: Path) -> None:
    path = _picture(tmp_path / "a.png", None)
    path.with_suffix(".txt").write_bytes(b"\xef\xbb\xbfa fox")
    assert _captions(tmp_path) == ["a fox"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "gb18030", "latin-1"])
def test_a_caption_in_another_encoding_is_refused_by_name(tmp_path: Path, encoding: str) -> None:
    path = _picture(tmp_path / "a.png", None)
    text = {"gb18030": "狐狸", "latin-1": "Füchse"}.get(encoding, "a fox")
    path.with_suffix(".txt").write_bytes(text.encode(encoding))
    with pytest.raises(AtelierError, match='a.txt" is not UTF-8 text. Save it as UTF-8'):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    "text", ["a fox\nsecond line", "a fox\r\nsecond", "\n  a fox  \n", "a fox\n\n"]
)
def test_the_caption_is_the_first_line_that_says_something(tmp_path: Path, text: str) -> None:
    path = _picture(tmp_path / "a.png", None)
    path.with_suffix(".txt").write_bytes(text.encode())
    assert read_caption(path) == "a fox"


@pytest.mark.parametrize(
    ("trigger", "caption", "expected"),
    [
        ("sks", "a fox, snow", "sks, a fox, snow"),
        ("sks", "sks, a fox", "sks, a fox"),
        ("sks", "a fox, sks, snow", "sks, a fox, snow"),
        ("sks", "sksy, a fox", "sks, sksy, a fox"),
        ("sks", "a photo of sks fox", "sks, a photo of sks fox"),
        ("glossy, 3d", "glossy, 3d, a fox", "glossy, 3d, a fox"),
        ("glossy, 3d", "a fox, 3d", "glossy, 3d, a fox"),
        (" sks, ", "a fox", "sks, a fox"),
        ("sks", "", "sks"),
        ("sks", "sks", "sks"),
        ("", "a fox,snow", "a fox,snow"),
    ],
)
def test_the_trigger_word_comes_first_and_once(
    tmp_path: Path, trigger: str, caption: str, expected: str
) -> None:
    _picture(tmp_path / "a.png", caption)
    assert _captions(tmp_path, class_tokens=trigger) == [expected]


def test_a_trigger_word_stands_in_for_missing_captions(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", None)
    assert _captions(tmp_path, class_tokens="sks fox") == ["sks fox"]


def test_pictures_without_caption_are_named(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    _picture(tmp_path / "empty.png", "  \n")
    _picture(tmp_path / "none.png", None)
    with pytest.raises(
        AtelierError, match=r"^2 of 3 pictures have no caption: empty.png, none.png\."
    ):
        load_folder(tmp_path)


def test_of_many_pictures_without_caption_the_first_five_are_named(tmp_path: Path) -> None:
    for i in range(7):
        _picture(tmp_path / f"{i}.png", None)
    with pytest.raises(AtelierError, match=r"0.png, 1.png, 2.png, 3.png, 4.png and 2 more"):
        load_folder(tmp_path)


def test_names_are_sorted_as_people_count(tmp_path: Path) -> None:
    names = ["img1.png", "img2.png", "img10.png", "Img11.png", "sub/img3.png"]
    for name in random.Random(0).sample(names, len(names)):
        _picture(tmp_path / name)
    assert _names(tmp_path) == names


def test_names_that_count_the_same_have_an_order_too(tmp_path: Path, monkeypatch) -> None:
    """Else the order, and with it the LoRA, would depend on the disk."""
    names = ["img01.png", "img1.png"]
    for name in names:
        _picture(tmp_path / name)
    as_listed = list(tmp_path.rglob("*"))
    orders = set()
    for listed in (as_listed, as_listed[::-1]):
        monkeypatch.setattr(Path, "rglob", lambda self, pattern, listed=listed: iter(listed))
        orders.add(tuple(_names(tmp_path)))
    assert orders == {tuple(names)}


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", ".cache/c.png", "sub/.d/e.png", "sub/f.png"):
        _picture(tmp_path / name)
    assert _names(tmp_path) == ["a.png", "sub/f.png"]


def test_a_dataset_may_itself_lie_in_a_hidden_folder(tmp_path: Path) -> None:
    _picture(tmp_path / ".data" / "a.png")
    assert _names(tmp_path / ".data") == ["a.png"]


def test_extensions_may_be_upper_case_and_other_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("A.PNG", "b.Jpeg"):
        _picture(tmp_path / name)
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    assert _names(tmp_path) == ["A.PNG", "b.Jpeg"]


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(AtelierError, match="b.png"):
        load_folder(tmp_path)


def test_a_missing_folder_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match="there is no folder .*nowhere"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(AtelierError, match="holds no pictures .*.png"):
        load_folder(tmp_path)


def test_what_was_asked_for_is_in_the_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "foxes"
    _picture(folder / "a.png"), _picture(folder / "b.png")
    dataset = load_folder(folder, resolution=256, num_repeats=3, source="own photos", license="CC0")
    assert (dataset.name, dataset.resolution) == ("foxes", 256)
    assert (dataset.source, dataset.license) == ("own photos", "CC0")
    assert dataset.images_per_epoch == 6


def test_the_summary_says_how_many_pictures_there_are_and_shows_a_caption() -> None:
    samples = (Sample(Path("a.png"), "a fox", 3), Sample(Path("b.png"), "a cat"))
    summary = ImageDataset(samples, 256).summary()
    assert "2 pictures, 4 an epoch, 256 px" in summary
    assert '"a fox"' in summary


@pytest.mark.parametrize("resolution", [500, 513, 63, 0, 8192, math.nan])
def test_a_resolution_the_vae_cannot_take_is_refused(resolution: float) -> None:
    with pytest.raises(AtelierError, match=f"resolution is {resolution}"):
        ImageDataset((Sample(Path("a.png"), "a"),), resolution)


@pytest.mark.parametrize("num_repeats", [0, -1, 10_001])
def test_repeats_out_of_range_are_refused(tmp_path: Path, num_repeats: int) -> None:
    with pytest.raises(AtelierError, match=f"num_repeats is {num_repeats}"):
        load_folder(tmp_path, num_repeats=num_repeats)


def _edit_caption(folder: Path) -> None:
    (folder / "a.txt").write_text("a wolf")


def _edit_at_the_same_length(folder: Path) -> None:
    (folder / "a.txt").write_text("a cat")
    os.utime(folder / "a.txt", ns=(1, 1))


def _touch_picture(folder: Path) -> None:
    os.utime(folder / "a.png", ns=(2, 2))


def _add(folder: Path) -> None:
    _picture(folder / "sub" / "b.png", None)


def _remove_caption(folder: Path) -> None:
    (folder / "a.txt").unlink()


def _rename(folder: Path) -> None:
    (folder / "a.png").rename(folder / "b.png")


@pytest.mark.parametrize(
    "change",
    [_edit_caption, _edit_at_the_same_length, _touch_picture, _add, _remove_caption, _rename],
)
def test_a_change_of_the_folder_changes_its_fingerprint(tmp_path: Path, change) -> None:
    _picture(tmp_path / "a.png")
    before = folder_fingerprint(tmp_path)
    change(tmp_path)
    assert folder_fingerprint(tmp_path) != before


@pytest.mark.parametrize("name", ["notes.md", ".hidden.png", ".cache/thumb.png"])
def test_what_is_no_part_of_the_dataset_leaves_the_fingerprint(tmp_path: Path, name: str) -> None:
    _picture(tmp_path / "a.png")
    before = folder_fingerprint(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("anything")
    load_folder(tmp_path)
    assert folder_fingerprint(tmp_path) == before
