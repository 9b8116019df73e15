"""Every kind of picture people have, made here by Pillow, and every kind of broken file."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL import ImageFile as PillowFile

from lora_atelier.training.dataset.fit import FitOptions, Placement, Variant, place
from lora_atelier.training.dataset.pictures import (
    ImageFile,
    ImagePixels,
    check_image,
    fitted_mask,
    fitted_pixels,
    image_suffixes,
    open_picture,
)
from lora_atelier.training.errors import AtelierError

ORIENTATION = 0x0112
WHITE = (255, 255, 255)


def load_image(path: Path, side: int, background: tuple = WHITE) -> torch.Tensor:
    """The picture cut to a square, as training sees it without buckets."""
    options = FitOptions((max(side, 64),), enable_bucket=False)
    image = open_picture(ImageFile(str(path), (0, 0)))
    placement = place(image.size, options, Variant(0), path.name)
    if side < 64:  # smaller than people may choose, so that each pixel can be told
        scale = max(side / image.width, side / image.height)
        resized = tuple(int(n * scale + 0.5) for n in image.size)
        crop = tuple((n - side) // 2 for n in resized)
        placement = Placement(image.size, resized, crop, (side, side))
    return fitted_pixels(image, placement, background)


def _pattern(width: int, height: int) -> np.ndarray:
    """[H, W, 3] bytes, another colour at every pixel."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 9, columns * 7, rows * 3 + columns * 5], axis=2).astype(np.uint8)


def _bytes(picture: torch.Tensor) -> np.ndarray:
    return (picture.numpy() * 255).round().astype(np.uint8)


def _saved(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_a_picture_is_height_width_rgb_float32_from_0_to_1(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2, 5] = (255, 128, 0)
    picture = load_image(_saved(tmp_path / "a.png", pixels), 8)
    assert picture.shape == (8, 8, 3)
    assert picture.dtype == torch.float32
    assert picture[2, 5].tolist() == pytest.approx([1, 128 / 255, 0])
    assert (picture.min(), picture.max()) == (0, 1)


@pytest.mark.parametrize(
    ("width", "height", "cut"),
    [
        (12, 8, np.s_[:, 2:10]),
        (8, 14, np.s_[3:11, :]),
        (8, 8, np.s_[:, :]),
    ],
)
def test_the_longer_side_is_cut_around_the_centre_pixel_by_pixel(
    tmp_path: Path, width: int, height: int, cut: tuple
) -> None:
    pixels = _pattern(width, height)
    picture = load_image(_saved(tmp_path / "a.png", pixels), 8)
    assert np.array_equal(_bytes(picture), pixels[cut])


def test_the_shorter_side_is_scaled_to_the_resolution(tmp_path: Path) -> None:
    """Four squares of one colour stay four squares."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, 32:], pixels[32:, :32], pixels[32:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    small = _bytes(load_image(_saved(tmp_path / "a.png", pixels), 16))
    corners = [small[y, x].tolist() for y, x in [(1, 1), (1, 14), (14, 1), (14, 14)]]
    assert corners == [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1)])
def test_a_strip_becomes_a_square(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "strip.png"
    Image.new("RGB", size, (10, 20, 30)).save(path)
    picture = load_image(path, 64)
    assert picture.shape == (64, 64, 3)
    assert np.unique(_bytes(picture).reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]


@pytest.mark.parametrize(
    ("orientation", "stored_as"),
    [
        (1, lambda up: up),
        (2, lambda up: up[:, ::-1]),
        (3, lambda up: up[::-1, ::-1]),
        (4, lambda up: up[::-1]),
        (5, lambda up: up.swapaxes(0, 1)),
        (6, lambda up: np.rot90(up, 1)),  # the camera was turned: show it a quarter clockwise
        (7, lambda up: up.swapaxes(0, 1)[::-1, ::-1]),
        (8, lambda up: np.rot90(up, -1)),
    ],
)
def test_a_turned_photo_is_set_upright(
    tmp_path: Path, orientation: int, stored_as: Callable[[np.ndarray], np.ndarray]
) -> None:
    upright, exif = _pattern(8, 8), Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(stored_as(upright))
    for extension in ("png", "tif"):
        path = _saved(tmp_path / f"a.{extension}", stored, exif=exif)
        assert np.array_equal(_bytes(load_image(path, 8)), upright), extension


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_turned_photo_is_that_of_the_upright_one(
    tmp_path: Path, extension: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a.{extension}"
    if f".{extension}" not in Image.registered_extensions():
        pytest.skip(f"this Pillow has no {extension}")
    Image.new("RGB", (64, 32)).save(path, exif=exif)
    size = (64, 32) if orientation < 5 else (32, 64)
    assert check_image(path) == size
    assert open_picture(ImageFile(str(path), size)).size == size


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :, 0] = 200  # red under every degree of cover
    pixels[0, 0, 3], pixels[0, 1, 3], pixels[0, 2, 3] = 255, 0, 102
    picture = _bytes(load_image(_saved(tmp_path / "a.png", pixels), 8))
    assert picture[0, 0].tolist() == [200, 0, 0]
    assert picture[0, 1].tolist() == [255, 255, 255]
    # 102/255 = 40 % red and 60 % white: 0.4·200 + 0.6·255 = 233, 0.6·255 = 153
    assert picture[0, 2].tolist() == [233, 153, 153]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])], ids=["one colour", "table"])
def test_transparent_colours_of_a_palette_are_white(tmp_path: Path, transparency) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 0), 1)
    image.save(tmp_path / "a.png", transparency=transparency)
    picture = _bytes(load_image(tmp_path / "a.png", 8))
    assert picture[0, 0].tolist() == [10, 20, 30]
    assert picture[0, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_keeps_its_shades(tmp_path: Path, name: str) -> None:
    """65535 is white: a shade is divided by 257, not cut off at 255."""
    values = np.array([0, 257, 514, 128 * 257, 65535, 300, 40000, 60000], np.uint16)
    path = _saved(tmp_path / name, np.tile(values, (8, 1)))
    with Image.open(path) as stored:
        assert stored.mode.startswith("I")  # the trap is there
    picture = _bytes(load_image(path, 8))
    assert picture[0, :, 0].tolist() == [0, 1, 2, 128, 255, 1, 156, 233]
    assert np.ptp(picture, axis=2).max() == 0


def test_grey_has_three_equal_channels(tmp_path: Path) -> None:
    pixels = _pattern(8, 8)[:, :, 0]
    picture = _bytes(load_image(_saved(tmp_path / "a.png", np.ascontiguousarray(pixels)), 8))
    assert np.array_equal(picture, np.stack([pixels] * 3, axis=2))


def test_cmyk_jpegs_have_their_colours(tmp_path: Path) -> None:
    # cyan 0, magenta and yellow 255, no black: red
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = load_image(tmp_path / "a.jpg", 8)[4, 4].tolist()
    assert red > 0.97
    assert max(green, blue) < 0.03


def test_cmyk_keeps_every_pixel(tmp_path: Path) -> None:
    """What a printer lays down is taken from white: R = (255 - C)(255 - K) / 255."""
    ink = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif")
    left = 255.0 - ink
    expected = left[..., :3] * left[..., 3:] / 255
    picture = _bytes(load_image(tmp_path / "a.tif", 8))
    assert np.abs(picture - expected).max() <= 1


def test_cmyk_jpegs_are_inverted_as_adobe_writes_them(tmp_path: Path) -> None:
    """No ink is stored as 255 in them; Pillow must have undone that."""
    Image.new("CMYK", (16, 16), (0, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    assert load_image(tmp_path / "a.jpg", 8).min() > 0.97


def _png(path: Path, pixels: np.ndarray, colour_type: int, *chunks: tuple[bytes, bytes]) -> Path:
    """16 bits a channel, which Pillow does not write in colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
        + b"".join(chunk(*more) for more in chunks)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def _claiming(path: Path, width: int, height: int) -> Path:
    """A picture of which there is no more than the header."""
    _png(path, np.zeros((1, 1), np.uint16), 0)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bit_colours_and_alpha_keep_their_shades(
    tmp_path: Path, colour_type: int, channels: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (8, 8, channels), np.uint16)
    image = open_picture(ImageFile(str(_png(tmp_path / "a.png", pixels, colour_type)), (8, 8)))
    assert image.mode == ("RGB" if channels == 3 else "RGBA")
    if channels == 2:
        pixels = pixels[:, :, [0, 0, 0, 1]]
    assert np.abs(np.asarray(image) - pixels / 257).max() < 1


def test_one_16_bit_grey_may_be_transparent(tmp_path: Path) -> None:
    grey = np.full((8, 8), 40_000, np.uint16)
    grey[0, 0], grey[0, 1] = 300, 301
    path = _png(tmp_path / "a.png", grey, 0, (b"tRNS", struct.pack(">H", 300)))
    picture = _bytes(load_image(path, 8))
    assert picture[0, :3, 0].tolist() == [255, 1, 156]


@pytest.mark.parametrize("extension", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, extension: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if extension == "webp" else {}
    path = tmp_path / f"a.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    with Image.open(path) as stored:
        assert stored.n_frames == 3
    assert _bytes(load_image(path, 8))[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "extension", ["jpg", "png", "webp", "bmp", "gif", "tiff", "avif", "jp2", "tga", "ppm"]
)
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, extension: str) -> None:
    whole, path = tmp_path / f"whole.{extension}", tmp_path / f"cut short.{extension}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    if f".{extension}" not in Image.registered_extensions():
        pytest.skip(f"this Pillow has no {extension}")
    content = _saved(whole, noise).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AtelierError, match=re.escape(str(path))):
        load_image(path, 8)


def test_an_avif_without_its_data_is_refused_by_name(tmp_path: Path) -> None:
    if ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no avif")
    path = _saved(tmp_path / "a.avif", _pattern(64, 64))
    content = path.read_bytes()
    begin = content.index(b"mdat") + 4
    path.write_bytes(content[:begin] + bytes(len(content) - begin))
    with pytest.raises(AtelierError, match="a.avif"):
        load_image(path, 8)


def test_an_empty_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "nothing.png"
    path.write_bytes(b"")
    with pytest.raises(AtelierError, match=re.escape(f'"{path}" is empty (0 bytes)')):
        check_image(path)
    with pytest.raises(AtelierError, match=re.escape(str(path))):
        load_image(path, 8)


@pytest.mark.parametrize("read", [check_image, lambda path: load_image(path, 8)])
def test_text_named_png_is_refused_by_name(tmp_path: Path, read: Callable) -> None:
    path = tmp_path / "page.png"
    path.write_text("<html>404</html>")
    with pytest.raises(AtelierError, match=re.escape(f'"{path}" is not an image')):
        read(path)


@pytest.mark.parametrize("read", [check_image, lambda path: load_image(path, 8)])
def test_a_decompression_bomb_is_refused_by_name(tmp_path: Path, read: Callable) -> None:
    """A small file that says it would unpack to more than twice Pillow's limit of pixels."""
    path = _claiming(tmp_path / "bomb.png", 20_000, 20_000)
    with pytest.raises(AtelierError, match=re.escape(f'"{path}" is too large')):
        read(path)


def test_a_bomb_is_refused_also_when_other_packs_switch_the_limit_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _claiming(tmp_path / "bomb.png", 20_000, 20_000)
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(AtelierError, match='bomb.png" is too large'):
            check_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_between_a_warning_and_the_limit_a_picture_loads(tmp_path: Path) -> None:
    assert check_image(_claiming(tmp_path / "a.png", 13_000, 13_000)) == (13_000, 13_000)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_where_warnings_are_errors_such_a_picture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match='a.png" is too large to be safe'):
        check_image(_claiming(tmp_path / "a.png", 13_000, 13_000))


def test_a_document_that_would_be_run_as_a_program_is_no_picture_by_any_name(
    tmp_path: Path,
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", "EPS")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "EPS"  # the trap is there
    with pytest.raises(AtelierError, match='a.png" is not an image'):
        check_image(tmp_path / "a.png")


def test_transparency_may_be_laid_on_any_colour(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[0, 0] = (200, 0, 0, 102)
    picture = _bytes(load_image(_saved(tmp_path / "a.png", pixels), 8, (10, 20, 30)))
    assert picture[1, 1].tolist() == [10, 20, 30]
    assert picture[0, 0].tolist() == [86, 12, 18]  # 0.4 · 200 + 0.6 · 10, 0.6 · 20, 0.6 · 30


def test_float_pictures_keep_their_shades(tmp_path: Path) -> None:
    values = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (8, 1))
    picture = _bytes(load_image(_saved(tmp_path / "a.tif", values), 8))
    assert picture[0, :, 0].tolist() == [round(i / 7 * 255) for i in range(8)]
    bright = _bytes(load_image(_saved(tmp_path / "b.tif", values * 4), 8))
    assert np.array_equal(bright, picture)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (np.float32, [0, 0.5, 1, 0.25], [0, 128, 255, 64]),
        (np.float32, [-1, 0, 0.5, 1], [0, 128, 191, 255]),
        (np.float32, [0, 1000, 2000, 4000], [0, 64, 128, 255]),
        (np.float32, [np.nan, 0.5, np.inf, -np.inf], [0, 128, 255, 0]),
        (np.float32, [np.nan, 2, np.inf, 1], [0, 255, 255, 128]),
        (np.float32, [-3e38, 0, 1, 3e38], [0, 128, 128, 255]),
        (np.int32, [0, 257, 32768, 65535], [0, 1, 128, 255]),
        (np.int32, [0, 65536, 131072, 262144], [0, 64, 128, 255]),
        (np.int32, [-65535, 0, 1, 65535], [0, 128, 128, 255]),
        (np.int32, [-(2**31), 0, 2**30, 2**31 - 1], [0, 128, 191, 255]),
        (np.uint32, [0, 2**31, 3 * 2**30, 2**32 - 1], [0, 128, 191, 255]),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_shade_of_a_32_bit_picture_is_cut_off(
    tmp_path: Path, kind: type, values: list[float], expected: list[int]
) -> None:
    path, pixels = tmp_path / "a.tif", np.tile(np.array(values, kind), (4, 1))
    unsigned = kind is np.uint32
    _saved(path, pixels.view(np.int32) if unsigned else pixels)
    if unsigned:  # Pillow writes signed numbers only: change the tag, SampleFormat, SHORT, 1, 2
        content = path.read_bytes()
        tag = struct.pack("<HHII", 339, 3, 1, 2)
        assert tag in content
        path.write_bytes(content.replace(tag, struct.pack("<HHII", 339, 3, 1, 1)))
    grey = np.asarray(open_picture(ImageFile(str(path), (4, 4))))[0, :, 0]
    assert np.abs(grey.astype(int) - expected).max() <= (1 if kind is np.float32 else 0), grey


def test_grey_with_alpha_is_laid_on_the_ground(tmp_path: Path) -> None:
    Image.new("LA", (8, 8), (90, 0)).save(tmp_path / "a.png")
    assert _bytes(load_image(tmp_path / "a.png", 8))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("extension", ["tga", "ppm", "jp2", "avif", "ico", "dds", "pcx"])
def test_rarer_formats_are_read_too(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    try:
        Image.new("RGB", (32, 32), (200, 30, 60)).save(path)
    except (KeyError, ValueError, OSError):
        pytest.skip(f"this Pillow writes no {extension}")
    assert f".{extension}" in image_suffixes()
    assert check_image(path) == (32, 32)
    colour = load_image(path, 8)[4, 4].mul(255).tolist()
    assert colour == pytest.approx([200, 30, 60], abs=8)


def test_documents_are_no_pictures() -> None:
    assert not image_suffixes() & {".pdf", ".eps", ".txt", ".mpg", ".h5", ".bufr", ".wmf", ".grib"}
    assert image_suffixes() >= {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def test_pixels_of_the_graph_are_told_apart_by_their_content() -> None:
    one, same, other = (np.zeros((4, 6, 3), np.uint8) for _ in range(3))
    other[0, 0, 0] = 1
    assert ImagePixels(one).digest == ImagePixels(same).digest != ImagePixels(other).digest
    assert ImagePixels(one).size == (6, 4)
    assert ImagePixels(one.reshape(6, 4, 3)).digest != ImagePixels(one).digest


def test_a_mask_is_the_alpha_or_the_brightness(tmp_path: Path) -> None:
    placement = Placement((4, 2), (4, 2), (1, 0), (2, 2), flip=True)
    grey = np.arange(8, dtype=np.uint8).reshape(2, 4) * 30
    expected = grey[:, ::-1][:, 1:3]
    mask = fitted_mask(open_picture(ImagePixels(grey)), placement)
    assert np.array_equal((mask.numpy() * 255).round().astype(np.uint8), expected)
    rgba = np.dstack([np.full((2, 4, 3), 9, np.uint8), grey])
    mask = fitted_mask(open_picture(ImagePixels(rgba)), placement)
    assert np.array_equal((mask.numpy() * 255).round().astype(np.uint8), expected)


def test_a_strip_that_would_fill_the_memory_when_scaled_is_scaled_where_it_is_kept() -> None:
    """1 × 10,000 px cover their bucket at 256 × 2,560,000; the middle shows what lay there."""
    pixels = np.zeros((10_000, 1, 3), np.uint8)
    pixels[:, 0, 0] = np.arange(10_000) // 40
    picture = ImagePixels(pixels)
    for flip in (False, True):
        placement = place(picture.size, FitOptions((512,)), Variant(0, flip=flip), "strip")
        assert placement.resized == (256, 2_560_000)
        part = _bytes(fitted_pixels(open_picture(picture), placement, WHITE))
        assert part.shape == (1024, 256, 3)
        assert set(np.unique(part[:, :, 0])) <= {124, 125}  # rows 4,998 to 5,002


def test_a_file_that_is_gone_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match="gone.png.* cannot be read"):
        load_image(tmp_path / "gone.png", 8)


def test_the_size_is_read_from_the_header_alone(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.png", _pattern(30, 20))
    path.write_bytes(path.read_bytes()[:60])
    assert check_image(path) == (30, 20)


def test_the_file_is_not_kept_open(tmp_path: Path) -> None:
    """On Windows an open file could not be moved away by the person."""
    path = _saved(tmp_path / "a.png", _pattern(8, 8))
    load_image(path, 8)
    check_image(path)
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("needs /proc")
    assert str(path) not in {str(link.resolve()) for link in open_files.iterdir()}


def test_a_file_cut_short_is_refused_whatever_other_packs_told_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its switch on, Pillow fills what is missing with grey."""
    monkeypatch.setattr(PillowFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = _saved(tmp_path / "a.jpg", noise)
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(AtelierError, match="is damaged or cut short"):
        load_image(path, 8)
    assert PillowFile.LOAD_TRUNCATED_IMAGES is True  # theirs to choose elsewhere
    whole = _saved(tmp_path / "b.png", _pattern(8, 8))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: load_image(whole, 8), range(50)))
    assert PillowFile.LOAD_TRUNCATED_IMAGES is True
