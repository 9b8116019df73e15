"""Which files are found in a folder: each once, in any order of the disk, none outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_atelier.training.dataset.listing import inside, list_folder
from lora_atelier.training.errors import AtelierError

SUFFIXES = {".png"}


def make(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")


def names(folder: Path, *within: Path) -> list[str]:
    return sorted(entry.name for entry in list_folder(folder, SUFFIXES, within).entries)


def told(folder: Path, *within: Path) -> dict[str, str]:
    return {p.name: p.reason for p in list_folder(folder, SUFFIXES, within).problems}


class Shuffled(list):
    """What ``os.scandir`` gives, in another order."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def any_order(request, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def ordered(path: str) -> Shuffled:
        with scandir(path) as found:
            return Shuffled(sorted(found, key=lambda e: e.name, reverse=request.param))

    monkeypatch.setattr(os, "scandir", ordered)


def test_an_entry_tells_what_the_disk_does(tmp_path: Path) -> None:
    make(tmp_path / "sub" / "A.b.PNG", tmp_path / "notes.md", tmp_path / "png")
    os.utime(tmp_path / "sub" / "A.b.PNG", ns=(5, 7))
    (entry,) = list_folder(tmp_path, SUFFIXES).entries
    assert entry == ("sub/A.b.PNG", str(tmp_path / "sub" / "A.b.PNG"), 7, 7, ".png")
    assert entry.stem == "sub/A.b"


def test_a_folder_goes_by_its_own_name_not_by_a_link_to_it(tmp_path: Path, any_order) -> None:
    make(tmp_path / "real" / "a.png")
    for link in ("alias", "zalias"):
        (tmp_path / link).symlink_to(tmp_path / "real")
    assert names(tmp_path) == ["real/a.png"]


def test_a_folder_elsewhere_is_entered_through_the_first_link(tmp_path: Path, any_order) -> None:
    make(tmp_path / "elsewhere" / "a.png", tmp_path / "set" / "b.png")
    for link in ("second", "first"):
        (tmp_path / "set" / link).symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "set", tmp_path) == ["b.png", "first/a.png"]


def test_a_link_to_a_folder_above_brings_in_its_other_folders_once(
    tmp_path: Path, any_order
) -> None:
    make(tmp_path / "set" / "a.png", tmp_path / "other" / "b.png")
    (tmp_path / "set" / "up").symlink_to(tmp_path)
    assert names(tmp_path / "set", tmp_path) == ["a.png", "up/other/b.png"]


def test_a_folder_that_is_itself_a_link_holds_each_file_once(tmp_path: Path, any_order) -> None:
    make(tmp_path / "real" / "sub" / "a.png")
    (tmp_path / "real" / "again").symlink_to(tmp_path / "real" / "sub")
    (tmp_path / "set").symlink_to(tmp_path / "real")
    assert names(tmp_path / "set") == ["sub/a.png"]


def test_links_that_lead_out_or_nowhere_are_told(tmp_path: Path) -> None:
    make(tmp_path / "set" / "a.png", tmp_path / "out" / "b.png", tmp_path / "set2" / "c.png")
    links = {
        "file.png": tmp_path / "out" / "b.png",
        "folder": tmp_path / "out",
        "beginning alike": tmp_path / "set2",
        "gone.png": tmp_path / "set" / "nothing.png",
        "gone outside.png": tmp_path / "nothing.png",
        "round.png": tmp_path / "set" / "round.png",
        "model.ckpt": tmp_path / "out" / "b.png",  # no picture, so nobody misses it
    }
    for name, target in links.items():
        (tmp_path / "set" / name).symlink_to(target)
    assert names(tmp_path / "set") == ["a.png"]
    reasons = told(tmp_path / "set")
    out = {name for name, reason in reasons.items() if "leads out" in reason}
    gone = {name for name, reason in reasons.items() if "is a link to a file" in reason}
    assert out == {"file.png", "folder", "beginning alike", "gone outside.png"}
    assert gone == {"gone.png", "round.png"}
    assert reasons.keys() == out | gone


def test_nothing_is_read_in_a_folder_outside_of_the_roots(tmp_path: Path) -> None:
    make(tmp_path / "set" / "a.png")
    (tmp_path / "root").mkdir()
    with pytest.raises(AtelierError, match="set.* lies outside the folders this pack may read"):
        list_folder(tmp_path / "set", SUFFIXES, [tmp_path / "root"])
    (tmp_path / "root" / "link").symlink_to(tmp_path / "set")
    with pytest.raises(AtelierError, match="lies outside"):
        list_folder(tmp_path / "root" / "link", SUFFIXES, [tmp_path / "root"])


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    for raw in (b"f\xfcchse.png", b"f\xfcchse.doc"):
        try:
            Path(os.fsdecode(bytes(tmp_path) + b"/" + raw)).write_text("content")
        except (OSError, UnicodeError):
            pytest.skip("this disk takes only names that are text")
    assert names(tmp_path) == ["a.png"]
    assert told(tmp_path) == {"f?chse.png": '"f?chse.png": its name is not UTF-8 text. Rename it.'}


def test_a_file_that_vanishes_while_the_folder_is_read_is_told(tmp_path: Path, monkeypatch) -> None:
    make(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "sub" / "c.png")
    scandir = os.scandir

    def too_late(path: str) -> Shuffled:
        with scandir(path) as found:
            children = Shuffled(found)
        (tmp_path / "b.png").unlink(missing_ok=True)
        return children

    monkeypatch.setattr(os, "scandir", too_late)
    found = list_folder(tmp_path, SUFFIXES)
    assert sorted(entry.name for entry in found.entries) == ["a.png", "sub/c.png"]
    assert [p.reason for p in found.problems] == [
        '"b.png" cannot be read: No such file or directory.'
    ]


def test_what_is_no_file_is_no_picture(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    (tmp_path / "folder.png").mkdir()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("", "a.png", "a.png"),
        ("sub", "a.png", "sub/a.png"),
        ("sub", "./x//a.png", "sub/x/a.png"),
        ("sub", "..\\a.png", "a.png"),
        ("a/b", "../../c.png", "c.png"),
        ("", "10:30.png", "10:30.png"),
    ],
)
def test_a_written_path_is_taken_from_its_folder(folder: str, name: str, expected: str) -> None:
    assert inside(folder, name) == expected


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a.png", "x/../../a.png", "/a.png", "\\\\host\\a.png", "C:/a.png"]
)
def test_a_written_path_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(AtelierError, match="leads out of the folder"):
        inside("", name)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b"]), max_size=8).map("/".join))
def test_no_written_path_gets_out(name: str) -> None:
    plain = os.path.normpath(f"x/y/{name}")
    if name.startswith("/") or plain == "." or plain.startswith(".."):
        with pytest.raises(AtelierError):
            inside("x/y", name)
    else:
        assert inside("x/y", name) == plain
