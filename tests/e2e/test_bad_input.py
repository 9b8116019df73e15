"""What people get wrong is refused in words that name the widget or file, and the queue goes on."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from host import HostServer, Result
from training_graph import DATASET, NETWORK, OPTIMIZER, PICTURES, SAVE, TRAIN, Watched, training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def the_queue_goes_on(server: HostServer) -> Iterator[None]:
    """After all the refusals of this file a good graph still trains."""
    yield
    dataset(server, "good at last")
    server.queue(training("good at last", steps=1, prefix="atelier/after_bad_input")).check()


def dataset(server: HostServer, name: str, **files: bytes | None) -> Path:
    """A folder with one good picture and its caption, and the given files over them."""
    folder = server.base / "input" / name
    folder.mkdir()
    for file in ("fox.png", "fox.txt"):
        shutil.copy(PICTURES / file, folder)
    for file, content in files.items():
        path = folder / file.replace("__", ".")
        path.unlink() if content is None else path.write_bytes(content)
    return folder


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.open(PICTURES / "fox.png").convert("RGB").resize((256, 256)).save(buffer, "JPEG")
    return buffer.getvalue()


def train_on(server: HostServer, folder: str, **widgets: Any) -> Result:
    prompt = training(folder, steps=1)
    prompt[DATASET]["inputs"] |= widgets
    return server.queue(prompt)


def refused_with(result: Result, *words: str) -> None:
    assert result.status in ("rejected", "error")
    assert [word for word in words if word not in result.message] == [], result.message
    assert "Traceback" not in result.message


@pytest.mark.parametrize(
    ("case", "files", "words"),
    [
        ("empty picture", {"bear__png": b""}, ("bear.png", "0 bytes")),
        ("text as picture", {"bear__png": b"just text"}, ("bear.png", "not an image")),
        ("no caption", {"fox__txt": None}, ("1 of 1", "no caption", "fox.png", "class_tokens")),
        ("odd letters", {"fox__txt": b"caf\xe9 \xff"}, ("fox.txt", "not UTF-8", "Save it")),
        ("no picture", {"fox__png": None}, ("folder", "holds no pictures")),
        ("cut short", {"bear__jpg": jpeg()[:3000]}, ("bear.jpg", "cut short", "remove it")),
    ],
)
def test_a_folder_with_something_wrong_in_it_names_the_file(
    server: HostServer, case: str, files: dict[str, bytes | None], words: tuple[str, ...]
) -> None:
    dataset(server, case, **files)
    result = train_on(server, case, class_tokens=trigger(case), unusable_files="stop")
    refused_with(result, *words)


def trigger(case: str) -> str:
    """Only the case that is about captions goes without."""
    return "" if case == "no caption" else "sks"


def test_bad_files_that_are_skipped_are_named_and_the_others_train(server: HostServer) -> None:
    files = {"empty__png": b"", "text__png": b"just text", "cut__jpg": jpeg()[:3000]}
    dataset(server, "skipped", **files)
    prompt = training("skipped", steps=1, prefix="atelier/skipped")
    prompt[DATASET]["inputs"]["class_tokens"] = "sks"
    watched = Watched(server, prompt)
    for name, words in (("empty.png", "0 bytes"), ("text.png", "not an image")):
        assert name in watched.text(DATASET) and words in watched.text(DATASET)
    assert "3 files left out" in watched.text(TRAIN)  # the third shows only when it is decoded
    assert "cut.jpg" in watched.text(TRAIN) and "cut short" in watched.text(TRAIN)


def test_a_missing_folder_is_named_and_the_place_to_look(server: HostServer) -> None:
    refused_with(train_on(server, "nowhere"), "folder", "nowhere", str(server.base / "input"))


def test_an_empty_folder_name_says_what_to_give(server: HostServer) -> None:
    refused_with(train_on(server, ""), "folder is empty", str(server.base / "input"))


@pytest.mark.parametrize("way", ["full path", "upwards", "symbolic link"])
def test_a_folder_outside_the_roots_is_refused(
    server: HostServer, tmp_path: Path, way: str
) -> None:
    shutil.copy(PICTURES / "fox.png", tmp_path)
    shutil.copy(PICTURES / "fox.txt", tmp_path)
    link = server.base / "input" / "way out"
    if way == "symbolic link":
        link.symlink_to(tmp_path, target_is_directory=True)
    names = {"full path": str(tmp_path), "upwards": "../..", "symbolic link": "way out"}
    result = train_on(server, names[way])
    refused_with(result, "outside the folders", "atelier_datasets", "extra_model_paths.yaml")
    assert result.status == "rejected"  # before anything ran


def test_a_folder_listed_in_extra_model_paths_trains(
    own_server: HostServer, tmp_path: Path
) -> None:
    listed = tmp_path / "listed"
    (listed / "foxes").mkdir(parents=True)
    for file in ("fox.png", "fox.txt"):
        shutil.copy(PICTURES / file, listed / "foxes")
    own_server.extra_model_paths = {"mine": {"atelier_datasets": str(listed)}}
    with own_server:
        train_on(own_server, "foxes").check()
        train_on(own_server, str(listed / "foxes")).check()


@pytest.mark.parametrize(
    ("node_id", "widget", "value", "words"),
    [
        (NETWORK, "network_dim", 0, ("network_dim is 0", "1 to 1024")),
        (OPTIMIZER, "unet_lr", math.nan, ("unet_lr is nan", "1e-4")),
        (SAVE, "filename_prefix", "../../x", ("filename_prefix", "../../x", "leads out of")),
        (SAVE, "filename_prefix", "", ("filename_prefix is empty",)),
    ],
)
def test_a_bad_widget_value_is_refused_before_anything_runs(
    server: HostServer, node_id: str, widget: str, value: Any, words: tuple[str, ...]
) -> None:
    folder = f"{widget} of length {len(str(value))}"
    dataset(server, folder)
    prompt = training(folder)
    prompt[node_id]["inputs"][widget] = value
    result = server.queue(prompt)
    refused_with(result, *words)
    assert result.status == "rejected"
    assert not list(server.base.parent.glob("x_*"))
