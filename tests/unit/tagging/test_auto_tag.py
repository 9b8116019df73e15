"""A dataset through a tagger: what is asked, remembered, written and counted."""

from __future__ import annotations

import csv
import io
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.tagging.auto_tag import TagReport, auto_tag
from lora_atelier.training.tagging.tag_options import ExistingCaptions, TagOptions
from lora_atelier.training.tagging.tag_picture import draw_tags, tag_figure
from lora_atelier.training.tagging.tagger import TaggerFiles, tagger_files
from taggers import colour_tagger, write_table

RED, GREEN, VIOLET, BLACK = (255, 0, 0), (0, 255, 0), (200, 0, 240), (0, 0, 0)


def picture(colour: tuple[int, int, int]) -> ImagePixels:
    return ImagePixels(np.full((6, 6, 3), colour, np.uint8))


DATASET = ImageDataset(
    (
        Sample(picture(RED), "red.png", ("a wall", "")),
        Sample(picture(GREEN), "green.png", ("",), role=Role.VALIDATION),
        Sample(picture(VIOLET), "violet.png", ("",), role=Role.REGULARISATION),
        Sample(picture(BLACK), "black.png", ("",)),
    )
)
ROWS = (("very_blue", 0), ("mr_green", 4), ("very_red", 0))


@pytest.fixture
def files(tmp_path: Path) -> TaggerFiles:
    found = tagger_files(colour_tagger(tmp_path / "models" / "colours", ROWS, batch=3))
    assert found is not None
    return found


def tagged(
    files: TaggerFiles,
    cache: Path,
    dataset: ImageDataset = DATASET,
    tick: Any = None,
    **options: Any,
) -> tuple[dict[str, tuple[str, ...]], TagReport]:
    """Captions by name, and the report."""
    made, report = auto_tag(dataset, files, TagOptions(**options), cache, tick or (lambda: None))
    return {sample.name: sample.captions for sample in made.samples}, report


EXPECTED = {
    "red.png": ("a wall, very red", "very red"),
    "green.png": ("mr green",),
    "violet.png": ("very blue, very red",),
    "black.png": ("",),
}


def test_pictures_of_every_role_are_tagged_and_nothing_else_changes(
    files: TaggerFiles, tmp_path: Path
) -> None:
    made, _ = auto_tag(DATASET, files, TagOptions(general_threshold=0.5), tmp_path / "cache")
    assert {sample.name: sample.captions for sample in made.samples} == EXPECTED
    assert [replace(sample, captions=("",)) for sample in made.samples] == [
        replace(sample, captions=("",)) for sample in DATASET.samples
    ]
    assert DATASET.samples[0].captions == ("a wall", "")


def test_the_report_counts_what_was_given(files: TaggerFiles, tmp_path: Path) -> None:
    _, report = tagged(files, tmp_path / "cache", general_threshold=0.5)
    assert list(csv.reader(io.StringIO(report.table))) == [
        ["tag", "count"],
        ["very red", "2"],
        ["mr green", "1"],
        ["very blue", "1"],
    ]
    text = report.text().splitlines()
    assert text == [
        "4 of 4 pictures tagged by colours (4 on CPU)",
        "3 different tags, 1.0 a picture",
        "most frequent: very red (2), mr green (1), very blue (1)",
        "nothing above the thresholds in 1: black.png",
    ]


def test_a_tag_with_a_comma_is_one_cell(files: TaggerFiles, tmp_path: Path) -> None:
    write_table(files.table, (("a", 0), ("b", 0), ('red, "very"', 0)))
    _, report = tagged(files, tmp_path / "cache", general_threshold=0.9)
    assert ['red, "very"', "1"] in csv.reader(io.StringIO(report.table))


def test_a_picture_is_looked_at_once(
    files: TaggerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first, report = tagged(files, cache, general_threshold=0.5)
    assert report.scores.remembered == 0
    os.utime(files.model, (1, 1))  # the content is what counts
    again, report = tagged(files, cache, general_threshold=0.5)
    assert (again, report.scores.remembered, report.scores.device) == (first, 4, "")
    assert "(4 remembered)" in report.text()
    other, report = tagged(files, cache, general_threshold=0.9, exclude_tags="very red")
    assert report.scores.remembered == 4 and other["violet.png"] == ("very blue",)
    write_table(files.table, (("sea", 0), ("wood", 0), ("fire", 0)))  # another table is no cost
    renamed, report = tagged(files, cache, general_threshold=0.5)
    assert report.scores.remembered == 4 and renamed["violet.png"] == ("sea, fire",)


@pytest.mark.parametrize("rows", [ROWS[:2], (*ROWS, ("more", 0))])
def test_a_table_of_another_length_is_refused_although_all_is_remembered(
    files: TaggerFiles, tmp_path: Path, rows: tuple[tuple[str, int], ...]
) -> None:
    tagged(files, tmp_path / "cache")
    write_table(files.table, rows)
    with pytest.raises(AtelierError, match=f"gives 3 numbers a picture, .* names {len(rows)} tags"):
        tagged(files, tmp_path / "cache")


def test_another_picture_or_model_is_looked_at(files: TaggerFiles, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tagged(files, cache)
    changed = DATASET.changed([replace(DATASET.samples[0], image=picture(GREEN))])
    captions, report = tagged(files, cache, changed)  # the same pixels as green.png
    assert captions["red.png"][1] == "mr green" and report.scores.remembered == 1
    darker = DATASET.changed([replace(DATASET.samples[0], image=picture((0, 254, 0)))])
    assert tagged(files, cache, darker)[1].scores.remembered == 0
    colour_tagger(files.model.parent, ROWS, weights=np.eye(3)[::-1])
    captions, report = tagged(files, cache, general_threshold=0.5)
    assert report.scores.remembered == 0 and captions["red.png"][1] == "very blue"


def test_only_empty_asks_only_about_pictures_without_a_caption(
    files: TaggerFiles, tmp_path: Path
) -> None:
    samples = [replace(DATASET.samples[0], captions=("a wall",)), *DATASET.samples[1:]]
    ticks: list[None] = []
    captions, report = tagged(
        files,
        tmp_path / "cache",
        DATASET.changed(samples),
        lambda: ticks.append(None),
        existing_captions=ExistingCaptions.ONLY_EMPTY,
    )
    assert captions["red.png"] == ("a wall",) and report.counts["very red"] == 1
    assert len(report.scores.found) == 3 and len(ticks) == 4
    assert report.text().startswith("3 of 4 pictures")


def test_one_tick_for_each_picture(files: TaggerFiles, tmp_path: Path) -> None:
    for _ in range(2):
        ticks: list[None] = []
        tagged(files, tmp_path / "cache", tick=lambda ticks=ticks: ticks.append(None))
        assert len(ticks) == 4


class Cancelled(Exception):
    """What the host raises."""


def test_cancel_ends_the_threads_and_keeps_what_was_found(
    files: TaggerFiles, tmp_path: Path
) -> None:
    def cancel() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        tagged(files, tmp_path / "cache", tick=cancel)
    assert not [t for t in threading.enumerate() if t.name.startswith("atelier-ahead")]
    _, report = tagged(files, tmp_path / "cache")
    assert report.scores.remembered == 3  # the first batch


def test_cancel_is_looked_at_before_anything_is_read(files: TaggerFiles, tmp_path: Path) -> None:
    calls: list[int] = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        auto_tag(DATASET, files, TagOptions(), tmp_path / "cache", check=cancel)
    assert len(calls) == 3 and not (tmp_path / "cache" / "tags").exists()


# Pictures on disk


def on_disk(folder: Path, broken: bool, may_be_skipped: bool) -> ImageDataset:
    samples = []
    for i in range(3):
        path = folder / f"{i}.png"
        Image.new("RGB", (80, 80), RED).save(path, compress_level=0)
        image = ImageFile(str(path), (80, 80))
        samples.append(Sample(image, path.name, ("",), may_be_skipped=may_be_skipped))
    if broken:
        content = (folder / "1.png").read_bytes()
        (folder / "1.png").write_bytes(content[: len(content) // 2])
    return ImageDataset(tuple(samples))


def test_a_broken_picture_is_named(files: TaggerFiles, tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match=r'1.png" is damaged or cut short'):
        tagged(files, tmp_path / "cache", on_disk(tmp_path, broken=True, may_be_skipped=False))


def test_a_broken_picture_that_may_be_skipped_stays_as_it_is(
    files: TaggerFiles, tmp_path: Path
) -> None:
    dataset = on_disk(tmp_path, broken=True, may_be_skipped=True)
    captions, report = tagged(files, tmp_path / "cache", dataset)
    assert captions == {"0.png": ("very red",), "1.png": ("",), "2.png": ("very red",)}
    assert 'left as it is: "' in report.text() and "2 of 3 pictures" in report.text()


def test_a_picture_that_is_gone_is_told_even_if_others_may_be_skipped(
    files: TaggerFiles, tmp_path: Path
) -> None:
    dataset = on_disk(tmp_path, broken=False, may_be_skipped=True)
    (tmp_path / "1.png").unlink()
    with pytest.raises(AtelierError, match=r'1.png" cannot be read'):
        tagged(files, tmp_path / "cache", dataset)


def test_nothing_but_a_rating_counts_as_nothing(files: TaggerFiles, tmp_path: Path) -> None:
    write_table(files.table, (("very_blue", 0), ("mr_green", 4), ("explicit", 9)))
    captions, report = tagged(files, tmp_path / "cache", add_rating=True)
    assert captions["red.png"] == ("a wall, explicit", "explicit")
    assert "red.png" in report.untagged and "violet.png" not in report.untagged


# The picture


def test_the_picture_shows_the_most_frequent_tags_by_kind(
    files: TaggerFiles, tmp_path: Path
) -> None:
    _, report = tagged(files, tmp_path / "cache", general_threshold=0.5)
    (axes,) = tag_figure(report).axes
    bars = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in axes.patches}
    assert [round(bars[place]) for place in sorted(bars)] == [2, 1, 1]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "very red",
        "mr green",
        "very blue",
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["general", "character"]
    assert axes.get_title(loc="left") == "colours: 3 tags in 4 of 4 pictures"
    pixels = draw_tags(report)
    assert pixels.shape[2] == 3 and 0 <= float(pixels.min()) < 0.5 < float(pixels.max()) <= 1


def test_without_tags_there_is_a_picture_too(files: TaggerFiles, tmp_path: Path) -> None:
    black = DATASET.changed(DATASET.samples[3:])
    _, report = tagged(files, tmp_path / "cache", black)
    (axes,) = tag_figure(report).axes
    assert [text.get_text() for text in axes.texts] == ["no tags"]
    assert draw_tags(report).shape == (420, 1000, 3)
