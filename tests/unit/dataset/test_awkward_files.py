"""One folder of the files that people really have: what is whole is right, the rest is named."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_atelier.training.dataset.fit import FitOptions, Variant, place
from lora_atelier.training.dataset.folder import FolderOptions, UnusableFiles, load_folder
from lora_atelier.training.dataset.pictures import fitted_pixels, open_picture
from lora_atelier.training.dataset.samples import ImageDataset
from lora_atelier.training.errors import AtelierError

SIDE = 64
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
PATTERN = np.stack([ROWS * 3, COLUMNS * 3, ROWS + COLUMNS], axis=2).astype(np.uint8)
"""[64, 64, 3]; no two pixels are alike."""
SMOOTH = (PATTERN // 2 + 64).astype(np.uint8)
"""What a JPEG keeps well."""
OPTIONS = FolderOptions(fit=FitOptions((SIDE,)))


def save(pixels: np.ndarray, path: Path, **options) -> None:
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, **options)


@lru_cache
def bomb() -> bytes:
    """A file of 50 kB that unpacks to 400 million pixels."""
    buffer = BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder: Path) -> dict[str, tuple[np.ndarray, int]]:
    """Write the folder; name of each whole picture -> ([64, 64, 3] as it must load, tolerance)."""
    expected: dict[str, tuple[np.ndarray, int]] = {}
    turned = Image.Exif()
    turned[0x0112] = 6
    save(np.rot90(PATTERN), folder / "01 turned.png", exif=turned)
    expected["01 turned.png"] = (PATTERN, 0)

    red = np.zeros((SIDE, SIDE, 4), np.uint8)
    red[..., 1:3] = 255  # magenta and yellow
    Image.fromarray(red, "CMYK").save(folder / "02 cmyk.jpg", quality=100)
    expected["02 cmyk.jpg"] = (np.full((SIDE, SIDE, 3), (255, 0, 0), np.uint8), 3)

    deep = (ROWS * SIDE + COLUMNS).astype(np.uint16) * 16
    save(deep, folder / "03 deep.png")
    grey = np.round(deep / 257).astype(np.uint8)
    expected["03 deep.png"] = (np.stack([grey] * 3, axis=2), 0)

    palette = Image.new("P", (SIDE, SIDE), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(1, (0, 0, SIDE, 32))
    palette.save(folder / "04 palette.png", transparency=1)
    ground = np.full((SIDE, SIDE, 3), (10, 20, 30), np.uint8)
    ground[:32] = 255
    expected["04 palette.png"] = (ground, 0)

    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "lime", "blue")]
    more = {"save_all": True, "append_images": frames[1:], "duration": 90}
    frames[0].save(folder / "05 moving.gif", **more)
    frames[0].save(folder / "06 moving.webp", lossless=True, **more)
    first = np.full((SIDE, SIDE, 3), (255, 0, 0), np.uint8)
    expected["05 moving.gif"] = expected["06 moving.webp"] = (first, 0)

    Image.new("RGB", (1, 4000), (7, 8, 9)).save(folder / "07 strip.png")
    (folder / "08 bomb.png").write_bytes(bomb())
    (folder / "09 nothing.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    save(noise, folder / "10 cut short.png")
    content = (folder / "10 cut short.png").read_bytes()
    (folder / "10 cut short.png").write_bytes(content[: len(content) // 2])

    save(SMOOTH, folder / "11 in truth a jpeg.png", format="JPEG", quality=100, subsampling=0)
    expected["11 in truth a jpeg.png"] = (SMOOTH, 4)
    (folder / "12 page.jpg").write_text("<html>404</html>")
    for name in ("13 狐狸 🦊.png", "14 it's \"a\" fox, isn't it.png", "15 LOUD.PNG"):
        save(PATTERN, folder / name)
        expected[name] = (PATTERN, 0)

    save(PATTERN, folder.parent / "secret.png")
    (folder.parent / "private").mkdir()
    save(PATTERN, folder.parent / "private" / "secret.png")
    (folder / "16 out.png").symlink_to(folder.parent / "secret.png")
    (folder / "16 way out").symlink_to(folder.parent / "private")
    (folder / "16 round").symlink_to(folder)
    (folder / "16 inside.png").symlink_to(folder / "01 turned.png")
    expected["16 inside.png"] = (PATTERN, 0)

    save(PATTERN, folder / "17 utf-16.png")
    (folder / "17 utf-16.txt").write_bytes("ein Füchslein, 狐狸".encode("utf-16"))
    save(PATTERN, folder / "18 mark.png")
    (folder / "18 mark.TXT").write_bytes(b"\xef\xbb\xbfa fox")
    expected["17 utf-16.png"] = expected["18 mark.png"] = (PATTERN, 0)
    return expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "awkward"
    place.mkdir()
    return place


def test_what_is_whole_loads_pixel_by_pixel(folder: Path) -> None:
    expected = fill(folder)
    samples = {s.name: s for s in load_folder(folder, OPTIONS).samples}
    assert set(samples) == {*expected, "07 strip.png", "10 cut short.png"}
    for name, (pixels, tolerance) in expected.items():
        sample = samples[name]
        assert sample.image.size == (SIDE, SIDE), name
        placement = place(sample.image.size, sample.fit, Variant(0), name)
        loaded = fitted_pixels(open_picture(sample.image), placement, sample.fit.background)
        difference = np.abs(loaded.numpy() * 255 - pixels.astype(float)).max()
        assert difference <= tolerance + 1e-3, f"{name}: {difference}"
    assert samples["17 utf-16.png"].caption == "ein Füchslein, 狐狸"
    assert samples["18 mark.png"].caption == "a fox"


def test_a_strip_of_one_pixel_fills_its_bucket(folder: Path) -> None:
    fill(folder)
    strip = next(s for s in load_folder(folder, OPTIONS).samples if s.name == "07 strip.png")
    placement = place(strip.image.size, strip.fit, Variant(0), strip.name)
    pixels = fitted_pixels(open_picture(strip.image), placement, strip.fit.background)
    assert pixels.shape[:2] == placement.size[::-1]
    assert np.unique((pixels.numpy() * 255).round().reshape(-1, 3), axis=0).tolist() == [[7, 8, 9]]


def test_every_bad_file_is_named_with_what_to_do(folder: Path) -> None:
    fill(folder)
    told = {p.name: p.reason for p in load_folder(folder, OPTIONS).problems}
    assert told.keys() == {
        "08 bomb.png",
        "09 nothing.png",
        "12 page.jpg",
        "16 out.png",
        "16 way out",
    }
    assert "too large to be safe" in told["08 bomb.png"]
    assert "is empty (0 bytes)" in told["09 nothing.png"]
    assert "is not an image, whatever its name says" in told["12 page.jpg"]
    assert "leads out of the folders" in told["16 out.png"]
    assert "leads out of the folders" in told["16 way out"]


def test_a_picture_cut_short_is_found_when_it_is_decoded(folder: Path) -> None:
    """Its header is whole; the training start leaves it out (tests/host/test_encoding_cache.py)."""
    fill(folder)
    sample = next(s for s in load_folder(folder, OPTIONS).samples if "cut short" in s.name)
    assert sample.may_be_skipped
    with pytest.raises(AtelierError, match="10 cut short.png.* is damaged or cut short"):
        open_picture(sample.image)


def test_or_everything_stops(folder: Path) -> None:
    fill(folder)
    strict = FolderOptions(unusable_files=UnusableFiles.STOP)
    with pytest.raises(AtelierError, match="^5 files of the folder cannot be used: .*08 bomb.png"):
        load_folder(folder, strict)


def test_links_into_other_folders_that_may_be_read_are_followed(folder: Path) -> None:
    fill(folder)
    dataset = load_folder(folder, OPTIONS, within=[folder.parent])
    names = {s.name for s in dataset.samples}
    assert {"16 out.png", "16 way out/secret.png"} <= names
    assert not any(name.startswith("16 round/") for name in names)  # and none for ever


def read_as_nobody(folder: Path) -> dict:
    """What a user without rights sees of a folder; only root can become one, in a child process."""
    receive, send = os.pipe()
    if os.fork() == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            dataset = load_folder(folder, OPTIONS)
            names = [sample.name for sample in dataset.samples]
            told = {problem.name: problem.reason for problem in dataset.problems}
            os.write(send, json.dumps({"names": names, "told": told}).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        return json.loads(pipe.read())


def test_files_and_folders_without_permission_are_named(tmp_path: Path) -> None:
    if not hasattr(os, "fork") or os.geteuid() != 0:
        pytest.skip("only root can become somebody without rights")
    folder = tmp_path / "set"
    (folder / "closed").mkdir(parents=True)
    for name in ("a.png", "b.png", "closed/c.png"):
        save(PATTERN, folder / name)
    (folder / "b.png").chmod(0)
    (folder / "closed").chmod(0)
    shut = [p for p in folder.parents if p.stat().st_mode & 0o007 == 0]  # pytest's own folders
    for parent in shut:
        parent.chmod(0o755)
    try:
        seen = read_as_nobody(folder)
    finally:
        for parent in shut:
            parent.chmod(0o700)
    assert seen["names"] == ["a.png"]
    assert seen["told"]["b.png"] == '"b.png" cannot be read: Permission denied.'
    assert seen["told"]["closed"] == 'folder "closed" cannot be opened: Permission denied.'


def test_the_folder_may_be_read_twice_through_an_index(folder: Path, tmp_path: Path) -> None:
    fill(folder)

    def read() -> ImageDataset:
        return load_folder(folder, OPTIONS, index=tmp_path / "index")

    assert read() == read() == load_folder(folder, OPTIONS)
