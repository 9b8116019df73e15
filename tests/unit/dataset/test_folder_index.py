"""A second look at a folder is quick, and sees what changed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

import lora_atelier.training.dataset.folder as folder_module
from lora_atelier.training.dataset.folder import load_folder

OLD = time.time() - 86_400


def picture(path: Path, size: tuple[int, int] = (64, 64), caption: str = "a fox") -> None:
    Image.new("RGB", size).save(path)
    path.with_suffix(".txt").write_text(caption)
    for file in (path, path.with_suffix(".txt")):
        os.utime(file, (OLD, OLD))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "set"
    place.mkdir()
    for i in range(6):
        picture(place / f"{i}.png", (64 + i, 64), f"number {i}")
    return place


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were really opened."""
    opened: list[str] = []
    for name in ("_read_size", "_read_text"):
        real = getattr(folder_module, name)
        monkeypatch.setattr(
            folder_module, name, lambda entry, real=real: opened.append(entry.name) or real(entry)
        )
    return opened


def test_unchanged_files_are_not_opened_again(folder: Path, tmp_path: Path, read) -> None:
    first = load_folder(folder, index=tmp_path / "index")
    assert len(read) == 12
    assert load_folder(folder, index=tmp_path / "index") == first == load_folder(folder)
    assert len(read) == 24  # twelve of them without an index


def test_only_what_changed_is_opened(folder: Path, tmp_path: Path, read) -> None:
    load_folder(folder, index=tmp_path / "index")
    read.clear()
    Image.new("RGB", (99, 64)).save(folder / "1.png")
    (folder / "2.txt").write_text("changed")
    picture(folder / "new.png")
    (folder / "3.png").unlink()
    dataset = load_folder(folder, index=tmp_path / "index")
    assert sorted(read) == ["1.png", "2.txt", "new.png", "new.txt"]
    assert dataset == load_folder(folder)
    assert dataset.samples[1].image.size == (99, 64)


def test_a_file_changed_just_now_is_not_trusted(folder: Path, tmp_path: Path, read) -> None:
    """Its time of change has too coarse a grain to tell the next change."""
    (folder / "0.txt").write_text("first")
    times = (folder / "0.txt").stat().st_mtime_ns
    load_folder(folder, index=tmp_path / "index")
    (folder / "0.txt").write_text("other")
    os.utime(folder / "0.txt", ns=(times, times))
    assert load_folder(folder, index=tmp_path / "index").samples[0].caption == "other"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 0, "files": {}}', "\x00\xff"])
def test_a_broken_index_is_made_again(folder: Path, tmp_path: Path, read, content: str) -> None:
    expected = load_folder(folder, index=tmp_path / "index")
    (file,) = (tmp_path / "index").iterdir()
    file.write_text(content)
    assert load_folder(folder, index=tmp_path / "index") == expected
    read.clear()
    load_folder(folder, index=tmp_path / "index")
    assert read == []


def test_files_that_are_gone_leave_the_index(folder: Path, tmp_path: Path) -> None:
    load_folder(folder, index=tmp_path / "index")
    for file in folder.glob("[0-3].*"):
        file.unlink()
    load_folder(folder, index=tmp_path / "index")
    (file,) = (tmp_path / "index").iterdir()
    assert sorted(json.loads(file.read_text())["files"]) == ["4.png", "4.txt", "5.png", "5.txt"]


def test_two_folders_do_not_share_an_index(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    picture(other / "0.png", (10, 10), "another")
    for place in (folder, other, folder, other):
        load_folder(place, index=tmp_path / "index")
    assert load_folder(other, index=tmp_path / "index").samples[0].caption == "another"
    assert len(list((tmp_path / "index").iterdir())) == 2
