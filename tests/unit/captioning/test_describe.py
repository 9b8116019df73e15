"""Pictures are asked of once, in batches, and answers come to the samples they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_atelier.training.cache import TensorCache
from lora_atelier.training.captioning.describe import (
    Answers,
    Captioned,
    Describe,
    ask,
    captioned,
    wanted,
)
from lora_atelier.training.captioning.wording import ExistingCaptions
from lora_atelier.training.dataset.digests import ContentDigests
from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample
from lora_atelier.training.errors import AtelierError, FileChanged


class Bench:
    """A model that says the mean colour of a picture, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loads = 0
        self.batches: list[list[tuple[int, int]]] = []
        self.told: list[tuple[str, str]] = []

    @contextmanager
    def loaded(self) -> Iterator[Describe]:
        self.loads += 1
        yield self._say

    def _say(self, images: Sequence[Image.Image]) -> list[str]:
        assert all(image.mode == "RGB" for image in images)
        self.batches.append([image.size for image in images])
        return [
            "a {} {} {}".format(*np.asarray(i).mean((0, 1)).round().astype(int)) for i in images
        ]

    def ask(
        self,
        *samples: Sample,
        identity: str = "it",
        batch_size: int = 2,
        told: Callable[[Sample, str], None] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Answers:
        return ask(
            samples,
            identity,
            TensorCache(self.folder / "captions"),
            ContentDigests(self.folder),
            self.loaded,
            batch_size,
            told or (lambda sample, text: self.told.append((sample.name, text))),
            check,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def sample(number: int, **values: object) -> Sample:
    pixels = np.full((8 + number, 8, 3), number, np.uint8)
    return replace(Sample(ImagePixels(pixels), f"{number}.png"), **values)


def test_every_picture_gets_its_own_answer(bench: Bench) -> None:
    answers = bench.ask(*(sample(i) for i in range(5)))
    assert answers.texts == {f"{i}.png": f"a {i} {i} {i}" for i in range(5)}
    assert (answers.asked, answers.broken) == (5, {})
    assert bench.told == list(answers.texts.items())
    assert bench.batches == [[(8, 8), (8, 9)], [(8, 10), (8, 11)], [(8, 12)]]


def test_answers_are_remembered_and_the_model_is_not_loaded(bench: Bench) -> None:
    first = bench.ask(sample(1), sample(2))
    second = Bench(bench.folder)
    assert second.ask(sample(2), sample(1)).texts == first.texts
    assert (second.loads, second.batches) == (0, [])
    third = Bench(bench.folder)
    assert third.ask(sample(1), sample(3)).asked == 1 and len(third.batches) == 1


def test_another_model_or_background_is_another_question(bench: Bench) -> None:
    transparent = ImagePixels(np.zeros((8, 8, 4), np.uint8))
    one = Sample(transparent, "a.png", fit=FitOptions(background=(10, 20, 30)))
    other = replace(one, fit=FitOptions(background=(200, 0, 0)))
    assert bench.ask(one).texts["a.png"] == "a 10 20 30"
    assert bench.ask(other).texts["a.png"] == "a 200 0 0"
    assert bench.loads == 2
    bench.ask(one, identity="other")
    assert bench.loads == 3


def test_equal_pictures_are_asked_of_once(bench: Bench) -> None:
    answers = bench.ask(sample(1), sample(1, name="copy.png"), sample(2))
    assert answers.texts["copy.png"] == answers.texts["1.png"]
    assert sum(map(len, bench.batches)) == 2 == answers.asked
    assert sorted(name for name, _ in bench.told) == ["1.png", "2.png", "copy.png"]


def test_cancel_keeps_what_was_said(bench: Bench) -> None:
    class Cancelled(Exception):
        """What the host raises."""

    def told(sample: Sample, text: str) -> None:
        if sample.name == "2.png":
            raise Cancelled

    with pytest.raises(Cancelled):
        bench.ask(*(sample(i) for i in range(6)), told=told)
    again = Bench(bench.folder)
    assert again.ask(*(sample(i) for i in range(6))).asked == 3


def test_a_broken_picture_is_named_and_left_out_where_it_may_be(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    broken = Sample(ImageFile(str(path), (8, 8)), "in/broken.png")
    with pytest.raises(AtelierError, match=r'broken.png" is not an image'):
        bench.ask(sample(1), broken)
    skipped = replace(broken, may_be_skipped=True)
    answers = bench.ask(skipped, sample(1))
    assert answers.texts.keys() == {"1.png"}
    assert str(tmp_path) not in answers.broken["in/broken.png"].reason
    result = _put(answers, skipped, sample(1))
    assert [s.name for s in result.dataset.samples] == ["1.png"]
    assert [p.name for p in result.dataset.problems] == ["in/broken.png"]
    with pytest.raises(AtelierError, match="none of its pictures can be used. .*not an image"):
        _put(bench.ask(skipped), skipped)


def test_a_picture_that_is_gone_ends_the_run(bench: Bench, tmp_path: Path) -> None:
    gone = Sample(ImageFile(str(tmp_path / "gone.png"), (8, 8)), "gone.png", may_be_skipped=True)
    with pytest.raises(FileChanged, match="gone.png"):
        bench.ask(gone)


def test_only_empty_captions_are_wanted_when_only_they_are_filled() -> None:
    dataset = ImageDataset(
        (sample(1), sample(2, captions=("red", " ")), sample(3, captions=("red", "fox")))
    )
    names = {e: [s.name for s in wanted(dataset, e)] for e in ExistingCaptions}
    assert names.pop(ExistingCaptions.ONLY_EMPTY) == ["1.png", "2.png"]
    assert all(all_of_them == ["1.png", "2.png", "3.png"] for all_of_them in names.values())


def test_captions_change_and_nothing_else(bench: Bench) -> None:
    old = sample(1, captions=("sks", ""), role=Role.VALIDATION, num_repeats=3, source="me")
    other = sample(2)
    result = _put(Answers({"1.png": "a picture of a fox"}, 1, {}), old, other)
    assert result.dataset.samples == (replace(old, captions=("a fox",)), other)
    assert (result.described, result.asked, result.silent) == (1, 1, ())
    assert old.captions == ("sks", "")


def test_those_of_which_nothing_is_left_are_named() -> None:
    result = _put(Answers({"1.png": "a picture of", "2.png": "a fox"}, 2, {}), sample(1), sample(2))
    assert result.silent == ("1.png",)


def _put(answers: Answers, *samples: Sample) -> Captioned:
    dataset = ImageDataset(samples)
    return captioned(dataset, answers, ("a picture of",), ExistingCaptions.REPLACE)


def test_cancel_is_looked_at_while_files_are_read(bench: Bench, tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    files = [Sample(ImageFile(str(tmp_path / f"{i}.png"), (8, 8)), f"{i}.png") for i in range(3)]
    calls: list[int] = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.ask(*files, check=cancel)
    assert bench.loads == 0 and len(calls) == 3
