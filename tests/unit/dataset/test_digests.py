"""A file is read again when, and only when, its content may have changed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import lora_atelier.training.dataset.digests as digests_module
from lora_atelier.training.dataset.digests import ContentDigests, content_digest
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels
from lora_atelier.training.errors import AtelierError

OLD = time.time_ns() - 10**14
"""A day ago, ns."""


def write(path: Path, content: bytes, mtime_ns: int = OLD) -> ImageFile:
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return ImageFile(str(path), (8, 8))


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def memo(tmp_path: Path) -> Path:
    return tmp_path / "memo"


@pytest.fixture
def picture(tmp_path: Path) -> ImageFile:
    return write(tmp_path / "picture.png", b"one")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the files that were really read."""
    paths: list[str] = []
    real = digests_module.content_digest
    monkeypatch.setattr(
        digests_module, "content_digest", lambda p: paths.append(Path(p.path).name) or real(p)
    )
    return paths


def ask(memo: Path, *pictures: ImageFile) -> list[str]:
    """As one run does."""
    digests = ContentDigests(memo)
    found = [digests.of(picture) for picture in pictures]
    digests.save()
    return found


def test_a_file_is_read_once(memo: Path, picture: ImageFile, read: list[str]) -> None:
    assert ask(memo, picture, picture) == [sha(b"one")] * 2
    assert ask(memo, picture) == [sha(b"one")]
    assert read == ["picture.png"]


def test_large_files_are_read_to_their_end(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000 + b"end"
    assert content_digest(write(tmp_path / "large", content)) == sha(content)


def png(texts: dict[str, str], value: int = 7, **more: object) -> bytes:
    info, content = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("L", (300, 200), value).save(content, "PNG", pnginfo=info, **more)
    return content.getvalue()


def test_the_graph_in_a_png_is_no_part_of_the_picture(tmp_path: Path) -> None:
    """A shared graph paints the same pictures again, with another choice written into them."""
    plain, *others = (
        content_digest(write(tmp_path / f"{i}.png", content))
        for i, content in enumerate(
            [
                png({}),
                png({"prompt": '{"1": {}}'}),
                png({"prompt": "狐" * 2000, "workflow": "{}"}),
                png({"prompt": "{}"}, value=8),
                png({"Raw profile type exif": "turned"}),
                png({"Raw profile type exif": "turned again"}),
                png({}, icc_profile=b"another colour space"),
                png({})[:-20],
                png({}) + b"more",
            ]
        )
    )
    assert plain == sha(png({})), "as that of any other file"
    assert others[:2] == [plain, plain]
    assert len({plain, *others[2:]}) == 7


def test_pictures_in_memory_have_their_own(memo: Path) -> None:
    black, white = (ImagePixels(np.full((4, 4, 3), v, dtype=np.uint8)) for v in (0, 255))
    assert ask(memo, black, white) == [black.digest, white.digest]
    assert black.digest != white.digest
    assert not memo.exists()


@pytest.mark.parametrize(
    ("content", "mtime_ns"), [(b"three", OLD), (b"two", OLD + 1)], ids=["size", "time"]
)
def test_another_size_or_time_is_a_change(
    memo: Path, picture: ImageFile, content: bytes, mtime_ns: int
) -> None:
    ask(memo, picture)
    write(Path(picture.path), content, mtime_ns)
    assert ask(memo, picture) == [sha(content)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no time of the last change")
def test_an_edit_that_puts_size_and_time_back_is_a_change(memo: Path, picture: ImageFile) -> None:
    ask(memo, picture)
    time.sleep(0.02)  # the clock of a file system ticks a hundred times a second or more
    write(Path(picture.path), b"two")
    assert Path(picture.path).stat().st_mtime_ns == OLD
    assert ask(memo, picture) == [sha(b"two")]


@pytest.mark.parametrize("ahead", [0, 10**14])
def test_a_file_too_young_to_tell_is_read_each_time(
    memo: Path, tmp_path: Path, read: list[str], ahead: int
) -> None:
    """Or one from the future, of which the clock cannot tell the age."""
    young = write(tmp_path / "young", b"one", time.time_ns() + ahead)
    ask(memo, young)
    ask(memo, young)
    assert read == ["young"] * 2


def test_one_edited_file_is_read_alone(memo: Path, tmp_path: Path, read: list[str]) -> None:
    pictures = [write(tmp_path / f"{i}", b"%d" % i) for i in range(5)]
    ask(memo, *pictures)
    write(tmp_path / "3", b"edited", OLD + 10**9)
    read.clear()
    assert ask(memo, *pictures)[3] == sha(b"edited")
    assert read == ["3"]


def test_what_is_forgotten_is_read_again(memo: Path, picture: ImageFile, read: list[str]) -> None:
    ask(memo, picture)
    digests = ContentDigests(memo)
    digests.forget(picture)
    digests.save()
    ask(memo, picture)
    assert read == ["picture.png"] * 2


@pytest.mark.parametrize("end", [0, 1, 20, -1])
def test_a_memo_cut_short_is_made_anew(memo: Path, picture: ImageFile, end: int) -> None:
    ask(memo, picture)
    file = ContentDigests(memo).file
    whole = file.read_bytes()
    file.write_bytes(whole[:end])
    assert ask(memo, picture) == [sha(b"one")]
    assert file.read_bytes() == whole


def test_no_byte_of_the_memo_that_is_wrong_is_believed(memo: Path, picture: ImageFile) -> None:
    ask(memo, picture)
    file = ContentDigests(memo).file
    whole = file.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x01
        file.write_bytes(damaged)
        assert ContentDigests(memo).of(picture) == sha(b"one"), place


def test_a_memo_of_another_kind_is_made_anew(memo: Path, picture: ImageFile) -> None:
    ask(memo, picture)
    file = ContentDigests(memo).file
    for content in ([1, 2], {"a": 1}, {"version": 0, "files": {}}, "text", None, 7):
        written = json.dumps(content).encode()
        file.write_bytes(b"%08x\n%s" % (zlib.crc32(written), written))
        assert ask(memo, picture) == [sha(b"one")]


def test_two_runs_add_to_one_memo(memo: Path, tmp_path: Path, read: list[str]) -> None:
    one, two = (write(tmp_path / name, name.encode()) for name in ("one", "two"))
    first, second = ContentDigests(memo), ContentDigests(memo)
    first.of(one)
    second.of(two)
    first.save()
    second.save()
    read.clear()
    ask(memo, one, two)
    assert read == []


def test_runs_that_save_at_the_same_moment_do_not_harm_each_other(
    memo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [write(tmp_path / f"{i}", b"%d" % i) for i in range(30)]

    def work() -> None:
        for picture in pictures:
            digests = ContentDigests(memo)
            digests.of(picture)
            digests.forget(pictures[0])  # so that there is something to save each time
            digests.save()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caplog.text == ""  # none took the other's half-written file away
    assert ask(memo, *pictures) == [sha(b"%d" % i) for i in range(30)]
    assert [file.name for file in memo.iterdir()] == [ContentDigests(memo).file.name]


def test_only_so_many_files_are_remembered(
    memo: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests_module, "MOST_FILES", 3)
    for i in range(5):
        ask(memo, write(tmp_path / f"{i}", b"%d" % i))
    read.clear()
    ask(memo, *(ImageFile(str(tmp_path / f"{i}"), (8, 8)) for i in (2, 3, 4)))
    assert read == []


def test_a_memo_that_cannot_be_written_is_logged_and_ends_nothing(
    tmp_path: Path, picture: ImageFile, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("where the folder should be")
    assert ask(tmp_path / "file", picture) == [sha(b"one")]
    assert "could not be written" in caplog.text


def test_file_names_that_are_no_unicode_are_remembered(
    memo: Path, tmp_path: Path, read: list[str]
) -> None:
    picture = write(tmp_path / os.fsdecode(b"gr\xfcn.png"), b"one")
    ask(memo, picture)
    assert ask(memo, picture) == [sha(b"one")]
    assert len(read) == 1


@pytest.mark.parametrize("look", [lambda p: ContentDigests(Path("x")).of(p), content_digest])
def test_a_file_that_is_gone_is_named(tmp_path: Path, look) -> None:
    with pytest.raises(AtelierError, match=r'gone\.png" cannot be read: No such file'):
        look(ImageFile(str(tmp_path / "gone.png"), (8, 8)))
