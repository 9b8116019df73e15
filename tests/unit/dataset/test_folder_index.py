"""A second look at a folder is quick, and sees what changed."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

import lora_atelier.training.dataset.folder as folder_module
from lora_atelier.training.dataset.folder import FolderOptions, MaskSource, load_folder

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


def with_checksum(content: bytes) -> bytes:
    return b"%08x\n" % zlib.crc32(content) + content


def entries(file: Path) -> dict[str, list]:
    return json.loads(file.read_bytes().partition(b"\n")[2])["files"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were really opened."""
    opened: list[str] = []
    for name in ("_read_size", "_read_caption"):
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


@pytest.mark.parametrize(
    ("caption", "time"), [("otherwise", OLD), ("number X", OLD - 1)], ids=["size", "time"]
)
def test_a_change_of_the_size_or_of_the_time_is_enough(
    folder: Path, tmp_path: Path, caption: str, time: float
) -> None:
    assert load_folder(folder, index=tmp_path / "index").samples[0].caption == "number 0"
    (folder / "0.txt").write_text(caption)
    os.utime(folder / "0.txt", (time, time))
    assert load_folder(folder, index=tmp_path / "index").samples[0].caption == caption


def test_a_file_changed_just_now_is_not_trusted(folder: Path, tmp_path: Path, read) -> None:
    """Its time of change has too coarse a grain to tell the next change."""
    (folder / "0.txt").write_text("first")
    times = (folder / "0.txt").stat().st_mtime_ns
    load_folder(folder, index=tmp_path / "index")
    (folder / "0.txt").write_text("other")
    os.utime(folder / "0.txt", ns=(times, times))
    assert load_folder(folder, index=tmp_path / "index").samples[0].caption == "other"


def _swapped_entries(content: bytes) -> bytes:
    return content.replace(b'"0.png"', b'"9.tmp"').replace(b'"0.txt"', b'"0.png"')


def _of_another_version(content: bytes) -> bytes:
    index = content.partition(b"\n")[2].replace(b"64", b"46")
    assert b'"version": 1' in index
    return with_checksum(index.replace(b'"version": 1', b'"version": 0'))


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: b"",
        lambda content: b"\x00\xff",
        lambda content: b"00000000\n{}",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"64", b"46", 1),
        lambda content: content.replace(b'"version"', b'"versiom"'),
        _swapped_entries,
        lambda content: with_checksum(b"[]"),
        _of_another_version,
    ],
)
def test_a_broken_index_is_made_again(
    folder: Path, tmp_path: Path, read, broken: Callable[[bytes], bytes]
) -> None:
    expected = load_folder(folder, index=tmp_path / "index")
    (file,) = (tmp_path / "index").iterdir()
    assert broken(file.read_bytes()) != file.read_bytes()
    file.write_bytes(broken(file.read_bytes()))
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
    assert sorted(entries(file)) == ["4.png", "4.txt", "5.png", "5.txt"]


def test_two_folders_do_not_share_an_index(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    picture(other / "0.png", (10, 10), "another")
    for place in (folder, other, folder, other):
        load_folder(place, index=tmp_path / "index")
    assert load_folder(other, index=tmp_path / "index").samples[0].caption == "another"
    assert len(list((tmp_path / "index").iterdir())) == 2


def test_masks_of_their_own_folder_do_not_take_the_place_of_pictures(
    folder: Path, tmp_path: Path, read
) -> None:
    (tmp_path / "masks").mkdir()
    for i in range(6):
        picture(tmp_path / "masks" / f"{i}.png", (128 + 2 * i, 128))
    options = FolderOptions(mask=MaskSource.FILES, mask_folder=tmp_path / "masks")
    first = load_folder(folder, options, within=[tmp_path], index=tmp_path / "index")
    assert [s.image.size[0] for s in first.samples] == [64, 65, 66, 67, 68, 69]
    assert [s.mask.size[0] for s in first.samples] == [128, 130, 132, 134, 136, 138]
    read.clear()
    assert load_folder(folder, options, within=[tmp_path], index=tmp_path / "index") == first
    assert read == []


def test_what_another_node_asks_of_the_folder_is_not_forgotten(
    folder: Path, tmp_path: Path, read
) -> None:
    """Two nodes may load one folder, with and without its masks."""
    picture(folder / "0.mask.png")
    (folder / "0.mask.txt").unlink()
    with_masks = FolderOptions(mask=MaskSource.FILES)
    for options in (with_masks, FolderOptions()):
        load_folder(folder, options, index=tmp_path / "index")
    read.clear()
    for options in (with_masks, FolderOptions()):
        load_folder(folder, options, index=tmp_path / "index")
    assert read == []


def test_an_index_that_did_not_change_is_not_written_again(folder: Path, tmp_path: Path) -> None:
    load_folder(folder, index=tmp_path / "index")
    (file,) = (tmp_path / "index").iterdir()
    os.utime(file, ns=(1, 1))
    load_folder(folder, index=tmp_path / "index")
    assert file.stat().st_mtime_ns == 1


def test_an_index_that_cannot_be_written_only_costs_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file where the folder should be")
    dataset = load_folder(folder, index=tmp_path / "index")
    assert len(dataset.samples) == 6


def test_a_folder_keeps_its_index_however_it_is_called(
    folder: Path, tmp_path: Path, read, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_folder(folder, index=tmp_path / "index")
    read.clear()
    monkeypatch.chdir(folder)
    assert load_folder(Path("."), index=tmp_path / "index") == first
    assert read == []


def test_several_write_one_index(folder: Path, tmp_path: Path, caplog) -> None:
    """As two servers with one output folder do."""

    def load_often(worker: int) -> None:
        for turn in range(40):
            times = (1 + turn, 1 + worker)
            os.utime(folder / "0.txt", times)
            dataset = load_folder(folder, index=tmp_path / "index")
            assert [s.caption for s in dataset.samples] == [f"number {i}" for i in range(6)]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(load_often, range(3)))
    assert caplog.text == ""
    (file,) = (tmp_path / "index").iterdir()
    assert len(entries(file)) == 12
