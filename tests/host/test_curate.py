"""Curate Dataset without a browser: the gallery that waits, its small pictures, and the node."""

from __future__ import annotations

import gc
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

from lora_atelier.nodes.dataset.curate import CurateDataset
from lora_atelier.nodes.dataset.curating import Looked, ask, make_gallery
from lora_atelier.nodes.gallery.gallery import (
    GALLERIES,
    Gallery,
    NotWaiting,
    Status,
)
from lora_atelier.nodes.gallery.thumbnails import thumbnail
from lora_atelier.nodes.live.browsers import Audience, RunningNode
from lora_atelier.training.curation.choice import Choice, key_of
from lora_atelier.training.curation.reasons import Cause, Reason
from lora_atelier.training.curation.scores import DatasetScores, Score
from lora_atelier.training.curation.selection import Decision
from lora_atelier.training.dataset.digests import content_digest
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Problem, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.progress import raise_if_cancelled
from tiny_training import load_parts
from widget_runs import call, widgets_of

NODE = "AtelierCurateDataset"
DROP_FIRST = '{"version": 1, "drop": ["%s"]}'


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder, new."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path


def pixels(seed: int, size: int = 64) -> ImagePixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return ImagePixels(np.asarray(Image.fromarray(coarse).resize((size, size), Image.BICUBIC)))


def pictures(count: int = 4) -> ImageDataset:
    """All different; 0.png is the same file as 1.png."""
    images = [pixels(max(i, 1)) for i in range(count)]
    return ImageDataset(tuple(Sample(p, f"{i}.png", (f"c {i}",)) for i, p in enumerate(images)))


def digest(dataset: ImageDataset, place: int) -> str:
    return content_digest(dataset.samples[place].image)


def looked(dataset: ImageDataset, *decisions: Decision) -> Looked:
    """As if the pictures had been scored and a rule applied."""
    count = len(dataset.samples)
    scores = DatasetScores(
        tuple(digest(dataset, i) for i in range(count)),
        {Score.SHARPNESS: tuple(float(i) for i in range(count))},
        (0, 0) + (None,) * (count - 2),
        (False,) * count,
        (),
    )
    return Looked(dataset, scores, decisions or (Decision(True, None),) * count)


# A gallery that waits


class Watched:
    """A gallery that waits in a thread of its own, and what it said."""

    def __init__(self, seconds: float = 0, there: Callable[[], bool] = lambda: True) -> None:
        self.events: list[dict[str, Any]] = []
        self.notices: list[float | None] = []
        self.look: Callable[[], None] = raise_if_cancelled
        self.dataset = pictures()
        known = looked(self.dataset)
        self.gallery = Gallery(
            "mine",
            "wait_for_me",
            make_gallery(known, "wait_for_me", Choice()).pictures.values(),
            known.with_choice,
            lambda event: self.events.append(json.loads(json.dumps(event))),
            place=RunningNode("12:7", "p", "w"),
        )
        self.outcome: Any = None
        self.thread = threading.Thread(target=self._wait, args=(seconds, there))
        self.thread.start()

    def _wait(self, seconds: float, there: Callable[[], bool]) -> None:
        try:
            self.outcome = self.gallery.wait(seconds, there, self._notice)
        except BaseException as error:
            self.outcome = error

    def _notice(self, left: float | None) -> None:
        self.notices.append(left)
        self.look()

    def end(self) -> Any:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.outcome

    @property
    def statuses(self) -> list[str]:
        return [event["status"] for event in self.events]


def test_it_waits_until_the_choice_comes() -> None:
    watched = Watched()
    time.sleep(0.35)
    assert watched.thread.is_alive() and watched.notices[0] is None
    assert GALLERIES.get(watched.gallery.id) is watched.gallery
    key = key_of(digest(watched.dataset, 2))
    watched.gallery.finish(DROP_FIRST % key)
    assert watched.end() == Choice(drop=frozenset([key]))
    assert watched.statuses == ["waiting", "done"]
    assert watched.events[0] == {
        "id": watched.gallery.id,
        "node": "12:7",
        "prompt": "p",
        "workflow": "w",
        "name": "mine",
        "status": "waiting",
        "started": watched.gallery.started,
        "seconds_left": None,
    }


def test_an_empty_choice_is_one_too() -> None:
    watched = Watched()
    time.sleep(0.05)
    watched.gallery.finish("")
    assert watched.end() == Choice() and watched.gallery.status is Status.DONE


def test_it_ends_when_the_time_is_up_and_counts_down() -> None:
    watched = Watched(seconds=0.5)
    began = time.monotonic()
    assert watched.end() is None
    assert 0.3 < time.monotonic() - began < 5
    assert watched.notices == sorted(watched.notices, reverse=True) and watched.notices[-1] == 0
    assert watched.statuses == ["waiting", "timed_out"]
    assert watched.events[0]["seconds_left"] == 0.5
    with pytest.raises(NotWaiting, match="closed"):
        watched.gallery.finish("")


def test_it_ends_when_nobody_is_there_any_more() -> None:
    left = iter([True, True, False])
    watched = Watched(there=lambda: next(left))
    assert watched.end() is None and watched.statuses == ["waiting", "timed_out"]
    assert len(watched.notices) == 3


def test_cancel_ends_it_at_once() -> None:
    watched = Watched(seconds=600)
    time.sleep(0.25)
    comfy.model_management.interrupt_current_processing()
    pressed = time.monotonic()
    error = watched.end()
    assert isinstance(error, comfy.model_management.InterruptProcessingException)
    assert time.monotonic() - pressed < 5
    assert watched.statuses == ["waiting", "cancelled"]


def test_a_choice_that_cannot_be_taken_is_refused_and_it_waits_on() -> None:
    watched = Watched()
    time.sleep(0.05)
    with pytest.raises(AtelierError, match="cannot be read as JSON"):
        watched.gallery.finish("{")
    everything = [key_of(digest(watched.dataset, i)) for i in (0, 2, 3)]
    with pytest.raises(AtelierError, match="All 4 pictures are dropped"):
        watched.gallery.finish(json.dumps({"version": 1, "drop": everything}))
    assert watched.thread.is_alive() and watched.gallery.status is Status.WAITING
    watched.gallery.finish("")
    watched.end()


def test_where_nothing_is_left_a_person_can_bring_pictures_back() -> None:
    known = looked(pictures(), *[Decision(False, Reason(Cause.OUTLIER))] * 4)
    shown = make_gallery(known, "wait_for_me", Choice()).pictures
    assert [picture.keep for picture in shown.values()] == [False] * 4
    with pytest.raises(AtelierError, match="All 4 pictures are dropped"):
        known.with_choice(Choice())


def test_of_many_that_press_continue_one_is_heard() -> None:
    watched = Watched()
    time.sleep(0.05)
    keys = [key_of(digest(watched.dataset, i)) for i in (1, 2, 3)] * 4
    taken: list[str] = []
    together = threading.Barrier(len(keys))

    def press(key: str) -> None:
        together.wait()
        try:
            watched.gallery.finish(DROP_FIRST % key)
        except NotWaiting:
            return
        taken.append(key)

    threads = [threading.Thread(target=press, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and watched.end() == Choice(drop=frozenset(taken))
    assert watched.statuses == ["waiting", "done"]


def test_what_the_browser_is_told_of_the_pictures() -> None:
    blurred = Decision(False, Reason(Cause.RANK, {"rank": 1, "count": 4}))
    dataset = pictures()
    known = looked(dataset, blurred, *[Decision(True, None)] * 3)
    choice = Choice(
        drop=frozenset([key_of(digest(dataset, 3))]),
        captions={key_of(digest(dataset, 2)): ("new", "newer")},
    )
    report = make_gallery(known, "use_saved_choice", choice, Status.DONE).report()
    assert json.loads(json.dumps(report)) == report
    assert (report["mode"], report["status"]) == ("use_saved_choice", "done")
    assert report["scores"] == ["sharpness"]
    assert report["images"][0] == {
        "id": "0",
        "digest": digest(dataset, 0),
        "name": "0.png",
        "width": 64,
        "height": 64,
        "captions": ["c 0"],
        "role": "train",
        "keep": False,
        "reason": {"cause": "rank", "values": {"rank": 1, "count": 4}},
        "scores": {"sharpness": 0.0},
        "group": 0,
        "outlier": False,
    }
    assert report["images"][2]["captions"] == ["new", "newer"]
    assert [image["keep"] for image in report["images"]] == [False, True, True, False]


def test_a_broken_picture_has_no_digest_to_choose_it_by() -> None:
    dataset = pictures(2)
    gone = Reason(Cause.BROKEN, {"why": "gone"})
    known = looked(dataset, Decision(False, gone), Decision(True, None))
    known = known._replace(
        scores=DatasetScores(
            known.scores.digests, {}, (None, None), (False, False), (Problem("0.png", "gone"),)
        )
    )
    images = make_gallery(known, "automatic", Choice()).report()["images"]
    assert [image["digest"] is None for image in images] == [True, False]


@pytest.mark.parametrize("status", [Status.WAITING, Status.DONE])
def test_a_closed_gallery_keeps_no_pictures_in_memory(status: Status) -> None:
    dataset = pictures(2)
    known = looked(dataset)
    gallery = make_gallery(known, "wait_for_me", Choice(), status)
    if status is Status.WAITING:
        gallery.finish("")
    assert gallery.pictures["0"].find() is dataset.samples[0].image
    del dataset, known
    gc.collect()
    assert gallery.pictures["0"].find() is None


# Small pictures


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize(
    ("size", "side", "small"),
    [((600, 300), 256, (256, 128)), ((600, 300), 1024, (600, 300)), ((10, 9), 256, (10, 9))],
)
def test_they_are_scaled_and_never_enlarged(
    tmp_path: Path, size: tuple[int, int], side: int, small: tuple[int, int]
) -> None:
    picture = ImagePixels(np.full((*size[::-1], 3), 90, np.uint8))
    assert opened(thumbnail(picture, picture.digest, side, tmp_path)).size == small


def test_they_are_upright_and_tell_nothing_of_the_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    path = tmp_path / "a.jpg"
    Image.new("RGB", (80, 40), "red").save(path, exif=exif)
    picture = ImageFile(str(path), (40, 80))
    small = opened(thumbnail(picture, content_digest(picture), 256, tmp_path / "cache"))
    assert small.size == (40, 80) and not small.getexif() and "exif" not in small.info


def test_they_are_made_once(tmp_path: Path) -> None:
    first = thumbnail(pixels(1), pixels(1).digest, 256, tmp_path)
    assert thumbnail(None, pixels(1).digest, 256, tmp_path) == first
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    with pytest.raises(AtelierError, match="no longer in memory"):
        thumbnail(None, pixels(2).digest, 256, tmp_path)


def test_one_that_is_cut_short_is_made_anew(tmp_path: Path) -> None:
    first = thumbnail(pixels(1), pixels(1).digest, 256, tmp_path)
    (file,) = tmp_path.rglob("*.webp")
    file.write_bytes(first[:-5])
    assert thumbnail(pixels(1), pixels(1).digest, 256, tmp_path) == first == file.read_bytes()


def test_a_file_that_was_changed_is_not_kept_under_the_old_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    picture = ImageFile(str(path), (8, 8))
    before = content_digest(picture)
    Image.new("RGB", (8, 8), "blue").save(path)
    with pytest.raises(AtelierError, match="has changed"):
        thumbnail(picture, before, 256, tmp_path / "cache")
    assert not list(tmp_path.rglob("*.webp"))


def test_a_folder_that_cannot_be_written_is_no_reason_to_show_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    content = thumbnail(pixels(1), pixels(1).digest, 256, tmp_path / "cache")
    assert opened(content).size == (64, 64)


# The node, in a process without a server


class Made:
    """What the node gave."""

    def __init__(self, dataset: ImageDataset, links: dict[str, Any], **widgets: Any) -> None:
        with torch.inference_mode():  # as ComfyUI runs nodes
            self.dataset, self.report = call(NODE, widgets, dataset=dataset, **links)
        self.gallery = GALLERIES.newest_first()[0].report()
        self.names = [sample.name for sample in self.dataset.samples]


def curate(dataset: ImageDataset, links: dict[str, Any] | None = None, **widgets: Any) -> Made:
    return Made(dataset, links or {}, **widgets)


def test_as_it_comes_the_node_keeps_everything_that_is_sound() -> None:
    made = curate(pictures())
    assert made.names == ["0.png", "1.png", "2.png", "3.png"]
    assert made.report == "4 pictures → 4 kept, 0 dropped"
    assert (made.gallery["mode"], made.gallery["status"]) == ("automatic", "done")
    assert all(image["scores"]["sharpness"] > 0 for image in made.gallery["images"])
    groups = [image["group"] for image in made.gallery["images"]]
    assert groups[0] is not None and groups[0] == groups[1] and groups[2:] == [None, None]


def test_the_rule_drops_and_the_report_says_why() -> None:
    made = curate(pictures(), drop_duplicates=True, keep_best=2)
    assert made.names == ["0.png", "2.png"]
    assert made.report.splitlines()[0] == "4 pictures → 2 kept, 2 dropped"
    assert "- 1.png: near duplicate of 0.png" in made.report and "- 3.png: " in made.report


def test_a_broken_picture_is_dropped_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(pixels(5).pixels).save(path)
    path.write_bytes(path.read_bytes()[:500])
    cut = Sample(ImageFile(str(path), (64, 64)), "cut.png")
    made = curate(ImageDataset((*pictures().samples, cut)))
    assert made.names == ["0.png", "1.png", "2.png", "3.png"]
    assert [problem.name for problem in made.dataset.problems] == ["cut.png"]
    assert "cut.png: broken" in made.report
    assert made.gallery["images"][4]["digest"] is None


def test_a_saved_choice_goes_before_the_rule_and_automatic_does_not_read_it() -> None:
    dataset = pictures()
    key = key_of(digest(dataset, 3))
    text = json.dumps({"version": 1, "keep": [key], "captions": {key: ["mine"]}})
    widgets = {"keep_best": 1, "choice": text}
    chosen = curate(dataset, mode="use_saved_choice", **widgets)
    assert chosen.names == ["0.png", "3.png"]
    assert chosen.dataset.samples[1].captions == ("mine",)
    assert "3 not named in choice, so the rule decides about them" in chosen.report
    assert curate(dataset, **widgets).names == ["0.png"]


def test_what_the_person_chose_is_what_the_saved_choice_gives(base: Path) -> None:
    """Also where the rule has dropped what the person keeps."""
    dataset = pictures()
    key, other = (key_of(digest(dataset, i)) for i in (3, 2))
    text = json.dumps({"version": 1, "keep": [key], "drop": [other], "captions": {key: ["x"]}})
    saved = curate(dataset, mode="use_saved_choice", keep_best=1, choice=text)
    known = looked(dataset, *[Decision(i == 0, None) for i in range(4)])
    watched = Gallery("mine", "wait_for_me", [], known.with_choice, lambda event: None)
    threading.Timer(0.2, watched.finish, [text]).start()
    choice = watched.wait(5, lambda: True, lambda left: None)
    assert known.with_choice(choice).dataset == saved.dataset


def test_without_a_browser_nobody_is_waited_for() -> None:
    began = time.monotonic()
    made = curate(pictures(), mode="wait_for_me", timeout_minutes=0, keep_best=3)
    assert time.monotonic() - began < 30
    assert made.report.startswith("NOBODY WAS ASKED")
    assert made.names == ["0.png", "1.png", "2.png"]


class Silent(Audience):
    """Somebody who is there and does not choose."""

    loaded: int | None = None
    """Models on the device when it was looked at last."""

    def there(self) -> bool:
        self.loaded = len(comfy.model_management.current_loaded_models)
        return True


def test_no_model_is_on_the_device_while_it_waits(tiny_checkpoint: Path) -> None:
    known, saved, audience = looked(pictures()), Choice(captions={"0" * 16: ("x",)}), Silent()
    parts = load_parts(tiny_checkpoint)
    comfy.model_management.load_models_gpu([parts.model])
    assert comfy.model_management.current_loaded_models
    answer = ask(known, "wait_for_me", saved, 1, audience)
    assert answer == (saved, "NOBODY CHOSE within 0:01.") and audience.loaded == 0


@pytest.mark.parametrize(
    ("widgets", "told"),
    [
        ({"score": "reference_similarity"}, "connect pictures of the wanted look to reference"),
        ({"score": "clip_similarity"}, "connect Load CLIP Vision to clip_vision"),
        ({"drop_outliers": True}, "nothing to compare with"),
        ({"mode": "later"}, "mode is 'later': it must be one of automatic"),
        ({"score": "beauty"}, "score is 'beauty'"),
        ({"keep_best": -1}, "keep_best"),
        ({"timeout_minutes": 20_000}, "timeout_minutes"),
        ({"choice": "{"}, "choice cannot be read"),
    ],
)
def test_what_cannot_be_done_is_told(widgets: dict[str, Any], told: str) -> None:
    with pytest.raises(AtelierError, match=told):
        curate(pictures(), **widgets)


def test_linked_widgets_are_judged_when_the_node_runs() -> None:
    assert CurateDataset.validate_inputs() is True
    assert widgets_of(NODE)["mode"] == "automatic" and len(widgets_of(NODE)) <= 12
